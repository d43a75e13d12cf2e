"""Passages of a block that occur in it again, so that near text teaches to find far text.

Little of a natural text can be predicted only from what stands thousands of tokens before. A
passage that occurs again can be: its first tokens tell where to look, and the rest is copied. So a
repeat trains the heads that find and copy (induction heads, 2209.11895), at every distance up to
the block's length, or, at skipped positions, up to the window's.

A model that learns nothing else copies also where it should not: the answer of a worked example in
place of its own. Forks are passages that begin alike and go on differently. There the first tokens
after the common beginning decide what is copied, and before them nothing does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from src.training.draws import Draw


@dataclass(frozen=True)
class Repeats:
    """How much of a block is repeated.

    Attributes:
        share: of the tokens that are replaced by a passage that stands earlier in the document,
            after the first `longest` ones.
        shortest, longest: tokens of a passage, drawn log-uniformly.
        forks: of the repeats that break off after `shortest` tokens, after which the text goes on
            by itself. Of two passages that then begin alike, each is repeated once more.

    Raises:
        ValueError: `shortest` is above `longest`.
    """

    share: Annotated[float, Field(gt=0, lt=1)]
    shortest: Annotated[int, Field(gt=1)] = 32
    longest: Annotated[int, Field(gt=1, le=65_536)] = 256
    forks: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.shortest > self.longest:
            raise ValueError(f"shortest={self.shortest} is above longest={self.longest}")

    def check(self, length: int) -> None:
        """Refuse blocks that hold less than a passage and its repeat.

        Raises:
            ValueError: a block of `length` tokens is too short.
        """
        if length < 2 * self.longest:
            raise ValueError(
                f"longest={self.longest}: a passage and its repeat do not fit into a block of "
                f"{length} tokens; give at most {length // 2}"
            )


def repeated(tokens_t: np.ndarray, repeats: Repeats, key: str) -> np.ndarray:
    """A document's tokens, with passages replaced by earlier ones.

    The gaps between repeats are uniform, from 0 to twice their mean. But for forks, a repeat's
    source is uniform over all that stands before it, and may hold repeats itself.

    Args:
        tokens_t: token ids, int64 [t]; not changed.
        key: seeds the draw; equal keys give equal repeats.

    Returns:
        token ids, int64 [t].
    """
    drawn, made_t = Draw(key), tokens_t.copy()
    widest = 2 * _mean_length(repeats) * (1 - repeats.share) / repeats.share
    place = repeats.longest
    alike: list[int] = []  # where passages begin that have a common beginning and are due again
    while True:
        place += drawn.integer(0, round(widest))
        fork = repeats.forks > 0 and drawn.unit() < repeats.forks
        tokens = repeats.shortest if fork else _length(repeats, drawn.unit())
        if place + tokens > len(made_t):
            return made_t
        source = drawn.integer(0, place - tokens)
        if fork:
            alike += [source, place]
        elif due := [begin for begin in alike if begin + tokens <= place]:
            source = due[drawn.integer(0, len(due) - 1)]
            alike.remove(source)
        made_t[place : place + tokens] = made_t[source : source + tokens]
        place += tokens


def _length(repeats: Repeats, unit: float) -> int:
    return round(repeats.shortest * (repeats.longest / repeats.shortest) ** unit)


def _mean_length(repeats: Repeats) -> float:
    """Tokens of a repeat, forks among them."""
    whole = float(repeats.shortest)
    if repeats.shortest < repeats.longest:
        whole = (repeats.longest - whole) / math.log(repeats.longest / whole)
    return repeats.forks * repeats.shortest + (1 - repeats.forks) * whole
