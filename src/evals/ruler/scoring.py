"""RULER's scores: are the reference answers in what the model wrote?

The rules are those of NVIDIA/RULER, scripts/eval (commit c3f5e3b): control characters become line
ends, case does not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from src.evals.ruler.sample import Match

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(answer: str) -> str:
    """An answer as it is compared."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def score(answer: str, outputs: Sequence[str], match: Match) -> float:
    """0 to 1: the share of `outputs` in the answer (`all`), or whether any is in it (`part`)."""
    text = cleaned(answer).lower()
    found = [1.0 if output.lower() in text else 0.0 for output in outputs]
    return sum(found) / len(found) if match == "all" else max(found)
