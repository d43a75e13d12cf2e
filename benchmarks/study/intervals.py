"""95% intervals of means over tasks: a paired bootstrap over items, and over seeds.

Every resample draws the items of a task with replacement, the same ones for all models, because
all models answer the same items; and it draws a method's seeds with replacement, for each method
by itself. With one seed an interval is that of the items alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from zlib import crc32

import numpy as np

Items = Mapping[str, Sequence[float]]
"""Scores of a model's items, by task."""
_CHUNK = 128


@dataclass(frozen=True)
class Value:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percent; a narrow column breaks no interval, for its blank is one that does not."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f},\u00a0{100 * self.high:.1f}]"

    @property
    def certain(self) -> bool:
        """Whether, being a difference, it is more than noise."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Scored:
    """What was tested under one name.

    Attributes:
        name: a method on a scaling; decides how its seeds are drawn.
        seeds: the items of each seed's model.
        resamples: of the bootstrap.
    """

    name: str
    seeds: tuple[Items, ...]
    resamples: int = 2000

    @cached_property
    def _seed_weights(self) -> np.ndarray:
        """How much each seed counts in each resample, float64 [resamples, seeds]."""
        draw = np.random.default_rng(crc32(self.name.encode()))
        number = len(self.seeds)
        return draw.multinomial(number, [1 / number] * number, size=self.resamples) / number

    def drawn(self, task: str) -> tuple[float, np.ndarray]:
        """A task's mean, and its resampled means, float64 [resamples]."""
        scores = np.array([items[task] for items in self.seeds], dtype=float)
        number = scores.shape[1]
        by_seed = np.concatenate(
            [times @ scores.T for times in _drawn_times(task, number, self.resamples)]
        )
        return float(scores.mean()), (self._seed_weights * by_seed).sum(axis=1) / number

    def mean(self, tasks: Sequence[str]) -> tuple[float, np.ndarray]:
        """The mean over tasks of equal weight, and its resampled values."""
        drawn = [self.drawn(task) for task in tasks]
        return float(np.mean([v for v, _ in drawn])), np.mean([r for _, r in drawn], axis=0)


@lru_cache(maxsize=64)
def _drawn_times(task: str, items: int, resamples: int) -> list[np.ndarray]:
    """How often each resample draws each item, uint16 [chunk, items]; the same for all models."""
    draw = np.random.default_rng(crc32(task.encode()))
    share = np.full(items, 1 / items)
    return [
        draw.multinomial(items, share, size=min(_CHUNK, left)).astype(np.uint16)
        for left in range(resamples, 0, -_CHUNK)
    ]


def mean(tested: Scored, tasks: Sequence[str]) -> Value:
    """The mean over tasks."""
    return _value(*tested.mean(tasks))


def difference(tested: Scored, other: Scored, tasks: Sequence[str]) -> Value:
    """The mean over tasks minus another's."""
    (mine, drawn), (theirs, others) = tested.mean(tasks), other.mean(tasks)
    return _value(mine - theirs, drawn - others)


def relative(tested: Scored, other: Scored, tasks: Sequence[str], others: Sequence[str]) -> Value:
    """The mean over tasks, as a share of another's mean over (maybe other) tasks."""
    (mine, drawn), (theirs, base) = tested.mean(tasks), other.mean(others)
    return _value(mine / theirs, drawn / base)


def _value(value: float, drawn: np.ndarray) -> Value:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Value(value, float(low), float(high))
