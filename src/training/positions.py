"""Positions of a block's tokens: contiguous, or with skips inside a longer window.

A short block whose positions skip shows a model distances that only long blocks have. Positions are
a pure function of the block's key, so that a resumed run and every rank see the same.

With n tokens of a block, L positions of the window and f = L / n:

- `contiguous`: 0 ... n-1.
- `cream` (CREAM, 2406.07138, as LongReD-C uses it): three runs, head 0 ... h-1, a middle of m
  tokens, and tail L-h ... L-1, where h is n // 3 or 4 f with equal chances. A Gaussian of mean
  1 + f and deviation 5, truncated to [2, 2 f] and rounded, gives k; the middle ends uniformly from
  h + (m - 1) k / 2 to n k / 2 - h - 1.
- `cream_reference`: k as in the public codes of CREAM and LongReD: values of the Gaussian outside
  the interval are clamped to its ends (a quarter to each at f = 4), and k is rounded down.
- `uniform` (LongReD-U): head and tail as before; the middle ends uniformly from n - h to L - h - 1.
- `pose` (PoSE, 2309.10400): two runs, 0 ... c-1 and the rest, shifted by a uniform skip of at most
  L - n; c is uniform.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np

from src.training.draws import Draw

Positions = Literal["contiguous", "cream", "cream_reference", "uniform", "pose"]

_DEVIATION = 5.0
# Fewer tokens than this leave no run to shift.
SHORTEST = 3


def check(kind: Positions, length: int, window: int) -> None:
    """Refuse blocks that `positions` cannot serve.

    Raises:
        ValueError: blocks longer than the window, or too short for skips.
    """
    if length > window:
        raise ValueError(f"blocks of {length} tokens do not fit into a window of {window}")
    if kind != "contiguous" and length < SHORTEST:
        raise ValueError(
            f"positions={kind} needs blocks of {SHORTEST} tokens or more, not {length}"
        )


def positions(kind: Positions, length: int, window: int, key: str) -> np.ndarray:
    """Positions of a block: int64 [length], strictly increasing, from 0 to at most window - 1.

    Args:
        window: number of positions, at least `length`.
        key: seeds the draw; equal keys give equal positions.
    """
    if kind == "contiguous" or length == window:
        return np.arange(length, dtype=np.int64)
    draw = Draw(key)
    if kind == "pose":
        first = draw.integer(1, length - 1)
        skip = draw.integer(0, window - length)
        shifted = np.arange(length, dtype=np.int64)
        shifted[first:] += skip
        return shifted
    factor = window / length
    # A short block may have fewer than 4 f tokens for each end.
    head = length // 3 if draw.integer(0, 1) else min(int(4 * factor), length // 3)
    middle = length - 2 * head
    if kind == "uniform":
        end = draw.integer(length - head, window - head - 1)
    else:
        spread = _spread(kind, factor, draw.unit())
        earliest = head + math.floor((middle - 1) * spread / 2)
        end = draw.integer(earliest, math.floor(length * spread / 2) - head - 1)
    return np.concatenate(
        [
            np.arange(head, dtype=np.int64),
            np.arange(end - middle + 1, end + 1, dtype=np.int64),
            np.arange(window - head, window, dtype=np.int64),
        ]
    )


def _spread(kind: Positions, factor: float, unit: float) -> int:
    """k of `cream`: an integer in [2, 2 factor]."""
    gauss = NormalDist(1 + factor, _DEVIATION)
    low, high = 2.0, 2 * factor
    if kind == "cream_reference":
        # The public code interpolates the inverse, which moves values outside to the ends.
        value = min(max(gauss.inv_cdf(min(max(unit, 1e-12), 1 - 1e-12)), low), high)
        return int(value)
    mass = gauss.cdf(high) - gauss.cdf(low)
    value = gauss.inv_cdf(gauss.cdf(low) + unit * mass)
    return min(math.floor(value + 0.5), math.floor(high))
