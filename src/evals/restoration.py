"""Scores of restoration: how much of the native model's ability is left, with intervals.

From every model's answers to the same items: values with standard errors, and for each student

    recovery         = 100 * student / native
    recovery_vs_best = 100 * student / best of the other runs
    gap_closed       = (student - scaled) / (native - scaled)

for each task, each category and the average. If lower is better, the ratios are inverted. Intervals
are 95% percentiles of a paired bootstrap: every resample draws items with replacement, the same
items for all models, since they answer the same questions. Tasks are drawn independently.

A task discriminates if the native model is above chance by two standard errors. The average is over
these tasks, the full average over all. Shares of right answers and bits per byte have no common
mean: an average is over tasks of one kind, shares if there are any.

With fewer than MIN_ITEMS items the error of a figure is unknown: one item has no spread, and three
equal answers seem to have none. Errors and intervals are then None, and nothing is called
significant or discriminating.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from src.results import (
    Difference,
    Differences,
    Intervals,
    Mean,
    Role,
    Score,
    StudentScores,
    TaskModel,
    TaskResult,
)

# Resamples drawn at once; bounds memory.
_CHUNK = 64
# The fewest items with errors and intervals.
MIN_ITEMS = 10
UNKNOWN_ERROR = f"- for a standard error: unknown, of fewer than {MIN_ITEMS} items."
_CONFIDENCE = (2.5, 97.5)


@dataclass(frozen=True)
class TaskFacts:
    """The facts about a task that scores need."""

    name: str  # of the task
    category: str  # whose average it counts in
    metric: str  # what its value is
    higher_is_better: bool = True  # False for bits per byte
    chance: float | None = None  # the value of guessing; None if it has no meaning
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By model, further fields of its result."""


@dataclass(frozen=True)
class Answers:
    """A model's answers to a task, one entry per item. Its value is sum(score) / sum(weight)."""

    score: Sequence[float]  # right or wrong, a share, or bits
    weight: Sequence[float]  # 1, or bytes
    predicted: Sequence[int] | None = None  # the number of the chosen answer, if there are choices
    gold: Sequence[int] | None = None  # the number of the right answer

    @classmethod
    def of_items(cls, items: Sequence[Mapping[str, Any]]) -> Answers:
        """Answers to items that each have a `score` and count once."""
        return cls([float(item["score"]) for item in items], [1.0] * len(items))

    @cached_property
    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and weights, float64 [items]."""
        return np.array(self.score, dtype=float), np.array(self.weight, dtype=float)

    @property
    def value(self) -> float:
        """The task's figure."""
        score, weight = self.columns
        return float(score.sum() / weight.sum())

    @property
    def enough(self) -> bool:
        """Whether there are enough items for a standard error."""
        return len(self.score) >= MIN_ITEMS

    @property
    def stderr(self) -> float | None:
        """Standard error of the value: of a mean if weights are 1, else of a ratio.

        None if there are too few items.
        """
        if not self.enough:
            return None
        score, weight = self.columns
        residual = (score - self.value * weight) / weight.mean()
        return float(residual.std(ddof=1) / np.sqrt(len(score)))


class Restoration:
    """All models' answers to all tasks, and every figure computed from them.

    A task that some model has no answers to does not count in averages.
    """

    def __init__(
        self,
        tasks: Sequence[TaskFacts],
        answers: Mapping[str, Mapping[str, Answers]],
        roles: Mapping[str, Role],
        *,
        resamples: int,
        seed: int,
    ) -> None:
        """Take the answers, by model and task; all models answer the same items of a task.

        The bootstrap is drawn when first needed. A task's resamples depend on `seed` and on the
        task's name.
        """
        self.tasks = [t for t in tasks if any(t.name in a for a in answers.values())]
        self.answers = answers
        self._roles: dict[str, Role] = {name: roles[name] for name in answers}
        self._common = [t for t in self.tasks if all(t.name in a for a in answers.values())]
        self._resamples = resamples
        self._seed = seed
        for task in self.tasks:
            sizes = {model: len(a.score) for model, a in self._given(task.name).items()}
            same = len(set(sizes.values())) == 1
            assert same, f"{task.name}: models answered other numbers of items: {sizes}"

    def _of_role(self, *roles: Role) -> list[str]:
        return [name for name, role in self._roles.items() if role in roles]

    def model(self, name: str, **further: Any) -> TaskModel:
        """A model's record; `further` holds its other fields."""
        categories = self._by_category().items()
        return TaskModel(
            name=name,
            role=self._roles[name],
            results=self.results(name),
            categories={category: self._mean(name, members) for category, members in categories},
            average=self.average(name),
            full_average=self.average(name, full=True),
            scores=self.scores(name),
            **further,
        )

    def results(self, model: str) -> dict[str, TaskResult]:
        """A model's figures by task."""
        return {
            task.name: TaskResult(
                metric=task.metric,
                value=answers.value,
                stderr=answers.stderr,
                n=len(answers.score),
                higher_is_better=task.higher_is_better,
                chance=task.chance,
                **task.details.get(model, {}),
            )
            for task in self.tasks
            if (answers := self.answers[model].get(task.name)) is not None
        }

    def average(self, model: str, *, full: bool = False) -> Mean | None:
        """A model's average over the tasks that discriminate, or over all."""
        members = self._averaged(full=full)
        return self._mean(model, members) if members else None

    def scores(self, model: str) -> StudentScores:
        """A student's scores; empty for other models, or without a native or scaled model."""
        references = [*self._of_role("native")[:1], *self._of_role("scaled")[:1]]
        if len(references) < 2 or self._roles[model] in ("native", "scaled"):
            return StudentScores()
        needed = (references[0], references[1], model)
        average, full = self._averaged(full=False), self._averaged(full=True)
        answered = [t for t in self.tasks if all(t.name in self.answers[m] for m in needed)]
        categories = self._by_category().items()
        return StudentScores(
            tasks={t.name: self._score(needed, [t]) for t in answered},
            categories={name: self._score(needed, members) for name, members in categories},
            average=self._score(needed, average) if average else None,
            full_average=self._score(needed, full) if full else None,
        )

    def discriminates(self, task: TaskFacts) -> bool:
        """Whether the native model is above chance by two standard errors, on enough items.

        If chance has no meaning, enough items suffice.
        """
        if task.chance is None:
            return self._enough([task])
        answers = (self.answers[name].get(task.name) for name in self._of_role("native"))
        native = next(answers, None)
        if native is None or native.stderr is None:
            return False
        return native.value > task.chance + 2 * native.stderr

    def _enough(self, members: Iterable[TaskFacts]) -> bool:
        """Whether each of these tasks has enough items."""
        return all(answers.enough for t in members for answers in self._given(t.name).values())

    def _given(self, task: str) -> dict[str, Answers]:
        """A task's answers by model."""
        return {m: a[task] for m, a in self.answers.items() if task in a}

    @cached_property
    def _drawn(self) -> dict[str, dict[str, np.ndarray]]:
        """Resampled values by task and model, float64 [resamples]."""
        return {task.name: self._draw(task.name) for task in self.tasks}

    def _draw(self, task: str) -> dict[str, np.ndarray]:
        """Resampled values of a task by model, float64 [resamples]."""
        by_model = self._given(task)
        columns = np.stack([x for a in by_model.values() for x in a.columns], axis=1)
        draw = np.random.default_rng([self._seed, zlib.crc32(task.encode())])
        starts = range(0, self._resamples, _CHUNK)
        counts = (_counts(draw, min(_CHUNK, self._resamples - s), len(columns)) for s in starts)
        sums = np.concatenate([counts_rn @ columns for counts_rn in counts])
        return {m: sums[:, 2 * i] / sums[:, 2 * i + 1] for i, m in enumerate(by_model)}

    def _by_category(self) -> dict[str, list[TaskFacts]]:
        categories: dict[str, list[TaskFacts]] = {}
        for task in self._common:
            categories.setdefault(task.category, []).append(task)
        return {name: _one_kind(members) for name, members in categories.items()}

    def _averaged(self, *, full: bool) -> list[TaskFacts]:
        return [t for t in _one_kind(self._common) if full or self.discriminates(t)]

    def _mean(self, model: str, members: Sequence[TaskFacts]) -> Mean:
        answers = [self.answers[model][t.name] for t in members]
        return Mean(
            value=float(np.mean([a.value for a in answers])),
            stderr=stderr_of_mean([a.stderr for a in answers]),
            tasks=tuple(t.name for t in members),
            higher_is_better=members[0].higher_is_better,
        )

    def _score(self, needed: tuple[str, str, str], members: Sequence[TaskFacts]) -> Score:
        """Scores of a task, or of the mean of several; `needed`: native, scaled, student."""
        better = members[0].higher_is_better
        enough = self._enough(members)
        native, scaled, mine = (self._both(m, members) for m in needed)
        lost = _percentiles((native[1] - scaled[1]) * (1 if better else -1))
        gap = enough and lost[0] > 0
        gained, behind = _percentiles(mine[1] - scaled[1]), _percentiles(mine[1] - native[1])
        best = self._best(needed[2], members)
        intervals = Intervals(
            recovery=_interval(_recovery(mine[1], native[1], better)),
            gap_closed=_interval(_gap(mine[1], scaled[1], native[1])) if gap else None,
            recovery_vs_best=_interval(_recovery(mine[1], best[1], better)) if best else None,
        )
        return Score(
            recovery=_number(_recovery(mine[0], native[0], better)),
            gap_closed=_number(_gap(mine[0], scaled[0], native[0])) if gap else None,
            recovery_vs_best=_number(_recovery(mine[0], best[0], better)) if best else None,
            interval=intervals if enough else Intervals(),
            difference=Differences(
                to_scaled=Difference(
                    value=mine[0] - scaled[0], interval=gained if enough else None
                ),
                to_native=Difference(
                    value=mine[0] - native[0], interval=behind if enough else None
                ),
            ),
            discriminating=any(self.discriminates(t) for t in members),
            significant=enough and (gained[0] > 0 or gained[1] < 0),
        )

    def _both(self, model: str, members: Sequence[TaskFacts]) -> tuple[float, np.ndarray]:
        """The mean of some tasks: its value and its resampled values."""
        value = float(np.mean([self.answers[model][t.name].value for t in members]))
        return value, np.mean([self._drawn[t.name][model] for t in members], axis=0)

    def _best(self, student: str, members: Sequence[TaskFacts]) -> tuple[float, np.ndarray] | None:
        """The best of the other runs' models on these tasks."""
        others = [model for model in self._of_role("comparison") if model != student]
        able = [m for m in others if all(t.name in self.answers[m] for t in members)]
        if not able:
            return None
        choose = max if members[0].higher_is_better else min
        return choose((self._both(m, members) for m in able), key=lambda pair: pair[0])


def stderr_of_mean(errors: Sequence[float | None]) -> float | None:
    """Standard error of the mean of independent values; None if one of their errors is unknown."""
    stated = [error for error in errors if error is not None]
    if len(stated) < len(errors):
        return None
    return float(np.sqrt(np.square(stated).sum()) / len(stated))


def _one_kind(members: Sequence[TaskFacts]) -> list[TaskFacts]:
    return [t for t in members if t.higher_is_better] or list(members)


def _counts(draw: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """How often each item is in each resample, float64 [resamples, n]."""
    chosen = draw.integers(0, n, size=(resamples, n))
    chosen += np.arange(resamples)[:, None] * n
    counts = np.bincount(chosen.ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(np.float64)


def _recovery(value: Any, reference: Any, higher_is_better: bool) -> Any:
    above, below = (value, reference) if higher_is_better else (reference, value)
    return 100 * _ratio(above, below)


def _gap(value: Any, scaled: Any, native: Any) -> Any:
    return _ratio(value - scaled, native - scaled)


def _ratio(above: Any, below: Any) -> np.ndarray:
    """A quotient; NaN if the divisor is 0, since such a resample has no ratio."""
    divisor = np.asarray(below, dtype=float)
    nothing = np.full_like(divisor, np.nan)
    return np.divide(above, divisor, out=nothing, where=divisor != 0)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _percentiles(resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(resampled, _CONFIDENCE)
    return float(low), float(high)


def _interval(resampled: np.ndarray) -> tuple[float, float] | None:
    if not np.isfinite(resampled).any():
        return None
    low, high = np.nanpercentile(resampled, _CONFIDENCE)
    return float(low), float(high)
