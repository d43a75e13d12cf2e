"""Judges the numbers of each step: what is not finite, and what leaps out of its neighbourhood."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

# Steps whose numbers a step is compared with, and how many there must be.
_WINDOW, _ENOUGH = 50, 20
# A spike exceeds the window's median by so many median absolute deviations, and so many times it.
_DEVIATIONS, _TIMES = 10.0, 2.0
_WATCHED = ("loss/total", "grad_norm")


class Watch:
    """Knows the numbers of a stage's last steps.

    Args:
        earlier: lines of metrics.jsonl of the stage's finished steps, oldest first.
    """

    def __init__(self, earlier: Iterable[Mapping[str, Any]] = ()) -> None:
        self._seen: dict[str, deque[float]] = {key: deque(maxlen=_WINDOW) for key in _WATCHED}
        for line in earlier:
            self._remember(line)

    def flags(self, metrics: Mapping[str, Any]) -> dict[str, int]:
        """`skipped` where a number is not finite, `spike` where one leaps; empty for other steps.

        A step of which a number is not finite has not changed the weights.
        """
        if not all(math.isfinite(metrics[key]) for key in _WATCHED):
            return {"skipped": 1}
        leaps = any(self._leaps(key, metrics[key]) for key in _WATCHED)
        self._remember(metrics)
        return {"spike": 1} if leaps else {}

    def _leaps(self, key: str, value: float) -> bool:
        seen = self._seen[key]
        if len(seen) < _ENOUGH:
            return False
        usual = median(seen)
        deviation = median(abs(each - usual) for each in seen)
        return value > usual + _DEVIATIONS * deviation and value > _TIMES * usual

    def _remember(self, metrics: Mapping[str, Any]) -> None:
        for key, seen in self._seen.items():
            value = metrics.get(key)
            if value is not None and math.isfinite(value):
                seen.append(value)
