"""Passages of a block that occur in it again, so that near text teaches to find far text.

Little of a natural text can be predicted only from what stands thousands of tokens before. A
passage that occurs again can be: its first tokens tell where to look, and the rest is copied. So a
repeat trains the heads that find and copy (induction heads, 2209.11895), at every distance up to
the block's length, or, at skipped positions, up to the window's.
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

    Raises:
        ValueError: `shortest` is above `longest`.
    """

    share: Annotated[float, Field(gt=0, lt=1)]
    shortest: Annotated[int, Field(gt=1)] = 32
    longest: Annotated[int, Field(gt=1, le=65_536)] = 256

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

    The gaps between repeats are uniform, from 0 to twice their mean. A repeat's source is uniform
    over all that stands before it, and may hold repeats itself.

    Args:
        tokens_t: token ids, int64 [t]; not changed.
        key: seeds the draw; equal keys give equal repeats.

    Returns:
        token ids, int64 [t].
    """
    drawn, made_t = Draw(key), tokens_t.copy()
    widest = 2 * _mean_length(repeats) * (1 - repeats.share) / repeats.share
    place = repeats.longest
    while True:
        place += drawn.integer(0, round(widest))
        tokens = _length(repeats, drawn.unit())
        if place + tokens > len(tokens_t):
            return made_t
        source = drawn.integer(0, place - tokens)
        made_t[place : place + tokens] = made_t[source : source + tokens]
        place += tokens


def _length(repeats: Repeats, unit: float) -> int:
    return round(repeats.shortest * (repeats.longest / repeats.shortest) ** unit)


def _mean_length(repeats: Repeats) -> float:
    if repeats.shortest == repeats.longest:
        return repeats.shortest
    return (repeats.longest - repeats.shortest) / math.log(repeats.longest / repeats.shortest)
