"""Result files of benchmarks as bars, one chart for each row name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from src.report import formatting
from src.report.charts import Axis, Chart, Point, Series
from src.report.figures.base import Choice, Figure, numbered
from src.report.files import ResultContent, ResultRow
from src.report.groups import ReportData

# Rows with their own charts, in the order of the page.
_FIRST = (
    "fwd_bwd_time_over_sdpa",
    "fwd_fraction_of_floor",
    "bwd_fraction_of_floor",
    "ard_tokens_per_second",
    "peak_gib",
)
_MAX_BARS = 24
_NOTE = "Measured by the repository's benchmarks; the filters above do not apply."


def _choices(data: ReportData, *, of_kernel: bool) -> Iterator[Choice]:
    for result in data.results:
        if result.content and result.name.startswith("kernel") == of_kernel:
            names = dict.fromkeys(row.name for row in result.content.rows)
            for name in sorted(names, key=_place):
                if chart := _bars(result.content, name):
                    yield (formatting.text(result.name), formatting.text(name)), chart


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _bars(content: ResultContent, name: str) -> Chart | None:
    named = [(row, row.value) for row in content.rows if row.name == name]
    measured = [(row, value) for row, value in named if value is not None and math.isfinite(value)]
    if not measured or len(measured) > _MAX_BARS:
        return None
    labels = _setting_labels([row for row, _ in measured])
    points = tuple(
        Point(place, value, note=label)
        for place, ((_, value), label) in enumerate(zip(measured, labels, strict=True))
    )
    unit = measured[0][0].unit
    title = formatting.text(f"{name} ({unit})" if unit else name)
    return Chart(
        title,
        Axis("", categories=labels),
        Axis(title),
        (Series(title, points, mode="bars"),),
        level=1.0 if unit in ("ratio", "fraction") else None,
        horizontal=True,
    )


def _setting_labels(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    """Labels that distinguish the rows: by shape, or by as few settings as needed.

    Rows with equal settings get a number.
    """
    settings = [row.settings for row in rows]
    shape = [key for key in "BHTD" if any(key in one for one in settings)]
    labels = [" ".join(f"{key}{one[key]}" for key in shape if key in one) for one in settings]
    if not shape:
        keys = dict.fromkeys(key for one in settings for key in one)
        varied = [key for key in keys if len({str(one.get(key)) for one in settings}) > 1]
        labels = [row.name for row in rows]
        for count in range(1, len(varied) + 1):
            parts = varied[:count]
            labels = [", ".join(f"{key} {one.get(key)}" for key in parts) for one in settings]
            if len(set(labels)) == len(rows):
                break
    return numbered(map(formatting.text, labels))


FIGURES = (
    Figure(
        "kernel",
        "Kernel",
        "performance",
        ("file", "figure"),
        partial(_choices, of_kernel=True),
        _NOTE,
        "No figures of the kernel were found. They are made on a GPU by:",
        "python -m kernels.bench --out benchmarks/results/kernel.json",
    ),
    Figure(
        "step",
        "Training step and runs",
        "performance",
        ("file", "figure"),
        partial(_choices, of_kernel=False),
        _NOTE,
        "No figures of a training step were found. They are made on a GPU by:",
        "python -m benchmarks.step",
    ),
)
