"""Result files of benchmarks, `benchmarks/results/NAME.json`, as charts and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from src.report import formatting
from src.report.charts import Axis, Chart, Figure, Point, Series
from src.report.files import Record, UnreadableFile, read_json

# Rows that answer a question of their own, in the order in which they are offered.
_FIRST = (
    "fwd_bwd_time_over_sdpa",
    "fwd_fraction_of_floor",
    "bwd_fraction_of_floor",
    "ard_tokens_per_second",
    "peak_gib",
)
_NOT_SETTINGS = {"name", "value", "unit", "device"}
_MAX_BARS = 24


class ResultRow(Record):
    """One figure with its settings, which are all further keys."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=True)

    name: str
    value: float | None = None
    unit: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What the figure was measured at."""
        extra = self.model_extra or {}
        return {k: v for k, v in extra.items() if k not in _NOT_SETTINGS and _is_plain(v)}


class ResultContent(Record):
    """A result file as a benchmark writes it."""

    device: str | None = None
    commit: str | None = None
    command: str | None = None
    rows: tuple[ResultRow, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Result:
    """A result file; `content` is None where it could not be read, for the reason `problem`."""

    name: str
    path: Path
    content: ResultContent | None
    problem: str = ""


def read_results(folder: Path) -> list[Result]:
    """All result files of a folder; none where there is no such folder."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(Result(path.stem, path, read_json(path, ResultContent)))
        except UnreadableFile as error:
            found.append(Result(path.stem, path, None, str(error)))
    return found


def performance_figures(results: Sequence[Result]) -> tuple[Figure, Figure]:
    """Bars of one row name each: of the kernel's files, and of all others."""
    kernel = [result for result in results if result.name.startswith("kernel")]
    others = [result for result in results if not result.name.startswith("kernel")]
    return (
        _figure("kernel", "Kernel", kernel),
        _figure("step", "Training step and runs", others),
    )


def _figure(name: str, title: str, results: Iterable[Result]) -> Figure:
    choices = [
        ((formatting.text(result.name), formatting.text(row_name)), chart)
        for result in results
        if result.content
        for row_name in _row_names(result.content)
        if (chart := _bars(result.content, row_name))
    ]
    return Figure(name, title, ("file", "figure"), tuple(choices))


def _row_names(content: ResultContent) -> list[str]:
    names = list(dict.fromkeys(row.name for row in content.rows))
    return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _bars(content: ResultContent, name: str) -> Chart | None:
    named = [(row, row.value) for row in content.rows if row.name == name]
    known = [(row, value) for row, value in named if value is not None and math.isfinite(value)]
    if not known or len(known) > _MAX_BARS:
        return None
    rows = [row for row, _ in known]
    labels = tuple(setting_labels(rows))
    points = tuple(
        Point(place, value, note=label)
        for place, ((_, value), label) in enumerate(zip(known, labels, strict=True))
    )
    unit = rows[0].unit
    title = formatting.text(f"{name} ({unit})" if unit else name)
    bars = Series(title, points, slot=0, mode="bars")
    level = 1.0 if unit in ("ratio", "fraction") else None
    return Chart(title, Axis("", categories=labels), Axis(title), (bars,), (), level, (), True)


def setting_labels(rows: Sequence[ResultRow]) -> list[str]:
    """What tells each row from the others: its shape, or as few settings as needed.

    Rows that settings do not tell apart get a number.
    """
    shape = [key for key in "BHTD" if any(key in row.settings for row in rows)]
    if shape:
        labels = [
            " ".join(f"{key}{row.settings[key]}" for key in shape if key in row.settings)
            for row in rows
        ]
    else:
        labels = _fewest_settings(rows)
    seen: dict[str, int] = {}
    unique = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        again = f" #{seen[label]}" if seen[label] > 1 else ""
        unique.append(formatting.text(f"{label}{again}".strip()))
    return unique


def _fewest_settings(rows: Sequence[ResultRow]) -> list[str]:
    varied = [
        key
        for key in dict.fromkeys(key for row in rows for key in row.settings)
        if len({str(row.settings.get(key)) for row in rows}) > 1
    ]
    labels = [row.name for row in rows]
    for count in range(1, len(varied) + 1):
        labels = [
            ", ".join(f"{key} {row.settings.get(key)}" for key in varied[:count]) for row in rows
        ]
        if len(set(labels)) == len(rows):
            break
    return labels


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
