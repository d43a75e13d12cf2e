"""Result files of benchmarks as bars, one chart for each row name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from src.report import formatting
from src.report.charts import Axis, Chart, Point, Series
from src.report.figures.base import Choice, Figure, numbered
from src.report.files import Result, ResultContent, ResultRow
from src.report.groups import ReportData

# What rows are called in words; those that are not listed come last, without underscores.
_TITLES = {
    "fwd_bwd_time_over_sdpa": "forward and backward, time over attention's",
    "fwd_fraction_of_floor": "forward, share of a matrix product's rate",
    "bwd_fraction_of_floor": "backward, share of a matrix product's rate",
    "extra_bytes_per_token": "memory beyond the inputs, a token",
    "dense_bytes_per_token": "dense torch: memory beyond the inputs, a token",
    "dense_time_over_ours": "dense torch: time over ours",
    "ard_tokens_per_second": "first stage, tokens a second",
    "cpt_tokens_per_second": "second stage, tokens a second",
    "peak_gib": "peak memory",
    "mfu": "floating-point operations, share of the device's rate",
    "plan_error_time": "how far the planned time is off",
    "plan_error_memory": "how far the planned memory is off",
}
_MAX_BARS = 24
_NOTE = "Measured by the repository's benchmarks; the filters above do not apply."


def _choices(data: ReportData, *, of_kernel: bool) -> Iterator[Choice]:
    for result in sorted(data.results, key=_first_place):
        if result.content and result.name.startswith("kernel") == of_kernel:
            names = dict.fromkeys(row.name for row in result.content.rows)
            for name in sorted(names, key=_place):
                if chart := _bars(result.content, name):
                    yield (formatting.text(result.name), formatting.text(_in_words(name))), chart


def _first_place(result: Result) -> int:
    """Files that hold what is asked most come first."""
    rows = result.content.rows if result.content else ()
    return min((_place(row.name) for row in rows), default=len(_TITLES))


def _place(name: str) -> int:
    return list(_TITLES).index(name) if name in _TITLES else len(_TITLES)


def _in_words(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


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
    title = formatting.text(_in_words(name) + (f" ({unit})" if unit else ""))
    x, y, series = Axis("", categories=labels), Axis(title), (Series(title, points, mode="bars"),)
    level = 1.0 if unit in ("ratio", "fraction") else None
    return Chart(x, y, series, level=level, horizontal=True)


def _setting_labels(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    """Labels that distinguish the rows: the shape, then names, then as few settings as needed.

    Rows with equal settings get a number.
    """
    settings = [row.settings for row in rows]
    shape = [key for key in "BHTD" if all(key in one for one in settings)]
    labels = [" ".join(f"{key}{one[key]}" for key in shape) for one in settings]
    keys = dict.fromkeys(key for one in settings for key in one if key not in shape)
    for key in sorted(keys, key=lambda key: _rank(key, settings)):
        if len(set(labels)) == len(rows):
            break
        parts = [_part(key, one) for one in settings]
        longer = [", ".join(filter(None, pair)) for pair in zip(labels, parts, strict=True)]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    if not any(labels):
        labels = [_in_words(row.name) for row in rows]
    return numbered(map(formatting.text, labels))


def _rank(key: str, settings: Sequence[Mapping[str, Any]]) -> tuple[bool, bool]:
    """Names are told first, devices last."""
    return key == "device", not all(isinstance(one.get(key, ""), str) for one in settings)


def _part(key: str, settings: Mapping[str, Any]) -> str:
    value = settings.get(key)
    if isinstance(value, str):
        return value
    return "" if value is None else f"{key} {value}"


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
