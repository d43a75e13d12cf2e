"""RULER's scores: whether the model's answer contains the references.

The rules are those of NVIDIA/RULER, scripts/eval (commit c3f5e3b): control characters become line
ends, case does not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from src.evals.ruler.sample import Match

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(answer: str) -> str:
    """An answer in the form that is compared."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def score(answer: str, outputs: Sequence[str], match: Match) -> float:
    """0 to 1: the share of `outputs` in the answer (`all`), or whether it has any (`part`)."""
    text = cleaned(answer).lower()
    matched = [1.0 if output.lower() in text else 0.0 for output in outputs]
    return sum(matched) / len(matched) if match == "all" else max(matched)
