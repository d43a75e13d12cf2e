"""Perplexity of the models of one evaluation against the length of the window."""

from __future__ import annotations

import math
from collections.abc import Sequence

from src.report import formatting
from src.report.charts import GRAY, Axis, Chart, Point, Series, log_ticks, short_length
from src.results import PerplexityModel, PerplexityResults

_STUDENTS = (0, 2, 3, 4)  # slots from the last model back to the first stage; 1 is the scaled model
_WIDE = 4  # values that span this factor get a logarithmic axis, so that the students stay apart


def perplexity_chart(report: PerplexityResults) -> Chart:
    """One line for each model; a value that is not finite is a gap."""
    windows = sorted(set(report.windows))
    students = [model.name for model in report.students]
    series = tuple(_line(model, windows, students) for model in report.models)
    values = [p.y for one in series for p in one.points if math.isfinite(p.y) and p.y > 0]
    wide = bool(values) and max(values) >= _WIDE * min(values)
    x = tuple((float(window), short_length(window)) for window in windows)
    return Chart(
        Axis("window (tokens)", log=True, ticks=x),
        Axis("perplexity", log=wide, ticks=log_ticks(values) if wide else ()),
        series,
        unified=True,
    )


def _line(model: PerplexityModel, windows: Sequence[int], students: Sequence[str]) -> Series:
    values = [model.perplexity.get(window) for window in windows]
    points = tuple(
        Point(window, value if value is not None and math.isfinite(value) else math.nan)
        for window, value in zip(windows, values, strict=True)
    )
    name = formatting.text(model.name)
    if model.role == "native":
        return Series(name, points, GRAY, "dot", symbol="circle-open")
    if model.role == "scaled":
        return Series(name, points, 1, "dash", symbol="diamond")
    from_last = len(students) - 1 - students.index(model.name)
    return Series(name, points, _STUDENTS[from_last % len(_STUDENTS)])
