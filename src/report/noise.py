"""The uncertainty from seeds and items, and which differences lie within it.

An interval is 95%. For one run it is the evaluation's, over items. For several seeds of
the same settings it is Student's t interval of their mean; since all seeds answer the same items,
the items' own uncertainty does not shrink with seeds and is added in quadrature.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.96


def _student(freedom: int) -> float:
    """The quantile for any number of degrees of freedom.

    Beyond the table: two terms of Cornish and Fisher's expansion (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    first = (NORMAL**3 + NORMAL) / 4
    second = (5 * NORMAL**5 + 16 * NORMAL**3 + 3 * NORMAL) / 96
    return NORMAL + first / freedom + second / freedom**2


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; None if its error is unknown."""

    value: float
    low: float | None = None
    high: float | None = None
    seeds: int = 1

    @property
    def half(self) -> float | None:
        """The wider side of the interval."""
        if self.low is None or self.high is None:
            return None
        return max(self.high - self.value, self.value - self.low)


class Mark(StrEnum):
    """How a value compares with the best of its column."""

    BEST = "best"
    NEAR = "near"  # within the noise of the best
    UNKNOWN = "unknown"  # one of the two has no interval
    WORSE = "worse"
    ALONE = "alone"  # nothing to compare it with
    ABSENT = "absent"


def around(value: float, stderr: float | None) -> Estimate:
    """A value with a standard error."""
    if stderr is None:
        return Estimate(value)
    return Estimate(value, value - NORMAL * stderr, value + NORMAL * stderr)


def over_seeds(estimates: Sequence[Estimate]) -> Estimate | None:
    """The mean of estimates, one for each seed; None without an estimate."""
    if len(estimates) < 2:
        return estimates[0] if estimates else None
    values = [estimate.value for estimate in estimates]
    mean = statistics.fmean(values)
    count = len(values)
    seeds = _student(count - 1) * statistics.stdev(values) / math.sqrt(count)
    halves = [half for estimate in estimates if (half := estimate.half) is not None]
    half = math.hypot(seeds, statistics.fmean(halves)) if halves else seeds
    return Estimate(mean, mean - half, mean + half, count)


def marks(estimates: Sequence[Estimate | None], *, higher_is_better: bool = True) -> list[Mark]:
    """The standing of each value against the best one of the list.

    A difference counts as noise when it is at most the root of the sum of both half intervals'
    squares, as if the two were measured on different items. Pairing would find more differences.
    """
    present = [estimate for estimate in estimates if estimate is not None]
    if not present:
        return [Mark.ABSENT] * len(estimates)
    if len(present) == 1:
        return [Mark.ABSENT if estimate is None else Mark.ALONE for estimate in estimates]
    choose = max if higher_is_better else min
    best = choose(present, key=lambda estimate: estimate.value)
    return [standing(estimate, best) for estimate in estimates]


def standings(estimate: Estimate, others: Iterable[Estimate | None]) -> str:
    """How a value stands to others, for the page: a mark's first letter; a blank for None."""
    return "".join(standing(estimate, other).value[0] if other else " " for other in others)


def standing(estimate: Estimate | None, best: Estimate) -> Mark:
    """How a value compares with the best one."""
    if estimate is None:
        return Mark.ABSENT
    if estimate.value == best.value:
        return Mark.BEST
    if estimate.half is None or best.half is None:
        return Mark.UNKNOWN
    near = abs(estimate.value - best.value) <= math.hypot(estimate.half, best.half)
    return Mark.NEAR if near else Mark.WORSE
