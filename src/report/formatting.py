"""Values as the text of a table cell. A missing value is a dash."""

from __future__ import annotations

import math
from datetime import datetime

from src import progress

DASH = "–"


def text(value: str | int | None) -> str:
    """The text as one line of printable characters."""
    if value is None or value == "":
        return DASH
    line = " ".join(str(value).split())
    return "".join(char if char.isprintable() else "\ufffd" for char in line)


def integer(value: int | None) -> str:
    """`24576` -> `24,576`."""
    return DASH if value is None else f"{value:,}"


def perplexity(value: float | None) -> str:
    """About four figures: `33.5`, `132.9`, `2,735`; `NaN` and `inf` as they are."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(value: float | None) -> str:
    """A value in percent, `94.2` -> `94.2%`."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.1f}%"


def share(value: float | None) -> str:
    """A fraction as percent, `0.942` -> `94.2%`."""
    return percent(None if value is None else 100 * value)


def duration(seconds: float | None) -> str:
    """`253.1` -> `4 min 13 s`."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    return progress.duration(seconds)


def moment(time: datetime | None) -> str:
    """Minutes in UTC, `2025-11-22 10:37`."""
    return DASH if time is None else f"{time:%Y-%m-%d %H:%M}"


def commit(sha: str | None, dirty: bool | None) -> str:
    """The first ten characters, followed by `+` for uncommitted changes."""
    return DASH if not sha else text(sha)[:10] + ("+" if dirty else "")
