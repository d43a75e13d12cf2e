"""Charts as plain data. The page draws them with Plotly (assets/figures.js), a paper gets them as
SVG (`svg`) and CSV; neither decides what is in them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# One colour a slot in page and paper; told apart with common colour-vision deficiencies and
# legible on white and on near-black. `assets/base.js` holds the same list.
COLORS = (
    "#2f7fd1",
    "#d9622b",
    "#17a08a",
    "#a35fd0",
    "#c79a1b",
    "#d6568a",
    "#6b8e3d",
    "#7d8590",
)
GRAY = -1
"""The slot of what is no method: native, scaled."""
GRAY_COLOR = "#8a8f98"
METHODS = ("linearard", "longred_c", "longred_u", "cpt_long", "cpt_mix", "logit_kd")
Dash = Literal["solid", "dash", "dot"]
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")


@dataclass(frozen=True)
class Point:
    """One point; `x` is a number, or a place among an axis's categories."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    runs: tuple[int, ...] = ()
    """Runs behind it, by their place in the list; none: it is always shown."""


@dataclass(frozen=True)
class Series:
    """Points of one name and look."""

    name: str
    points: tuple[Point, ...]
    slot: int = 0
    dash: Dash = "solid"
    mode: Literal["line", "dots", "bars"] = "line"
    alternatives: bool = False
    """Points at one x stand for the same thing, in order of preference: one is drawn."""

    @property
    def drawn(self) -> tuple[Point, ...]:
        """The points that are drawn when all runs are shown."""
        if not self.alternatives:
            return self.points
        first: dict[float, Point] = {}
        for point in self.points:
            first.setdefault(point.x, point)
        return tuple(first.values())


@dataclass(frozen=True)
class Axis:
    """`categories`: names at 0, 1, ...; `ticks`: where a logarithmic axis is labelled."""

    title: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Series over two axes."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    marks: tuple[tuple[float, str], ...] = ()
    """Vertical lines with a label."""
    level: float | None = None
    """A horizontal line."""
    runs: tuple[int, ...] = ()
    """Runs that the whole chart is of; none: its points tell."""
    horizontal: bool = False
    """Bars lie: x is drawn from top to bottom."""

    def data(self) -> dict[str, Any]:
        """For the page."""
        return {
            "kind": "chart",
            "title": self.title,
            "x": _axis(self.x),
            "y": _axis(self.y),
            "marks": self.marks,
            "level": self.level,
            "runs": self.runs,
            "horizontal": self.horizontal,
            "series": [
                {
                    "name": one.name,
                    "slot": one.slot,
                    "dash": one.dash,
                    "mode": one.mode,
                    "alternatives": one.alternatives,
                    "points": [_point(point) for point in one.points],
                }
                for one in self.series
            ],
        }

    def csv(self) -> str:
        """A line a point."""
        names = self.x.categories
        rows = [
            (one.name, names[int(p.x)] if names else f"{p.x:g}", p.y, p.low, p.high, p.note)
            for one in self.series
            for p in one.drawn
        ]
        return table_csv(("series", self.x.title, self.y.title, "low", "high", "note"), rows)


@dataclass(frozen=True)
class Heatmap:
    """Values over two axes of names; `values[row][column]`, rows from top to bottom."""

    title: str
    x_title: str
    y_title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    value_title: str
    runs: tuple[int, ...] = ()
    limits: tuple[float, float] | None = None
    """Ends of the colour scale; None: the values' own."""
    log: bool = False
    text: bool = False
    """Write the values into the cells."""

    def data(self) -> dict[str, Any]:
        """For the page."""
        return {
            "kind": "heatmap",
            "title": self.title,
            "x_title": self.x_title,
            "y_title": self.y_title,
            "columns": self.columns,
            "rows": self.rows,
            "values": [[_short(value, 3) for value in row] for row in self.values],
            "value_title": self.value_title,
            "runs": self.runs,
            "limits": self.limits,
            "log": self.log,
            "text": self.text,
        }

    def csv(self) -> str:
        """A line a cell."""
        rows = [
            (row, column, value)
            for row, values in zip(self.rows, self.values, strict=True)
            for column, value in zip(self.columns, values, strict=True)
        ]
        return table_csv((self.y_title, self.x_title, self.value_title), rows)


@dataclass(frozen=True)
class Figure:
    """Charts of one kind, of which one is shown at a time."""

    name: str
    title: str
    chosen_by: tuple[str, ...]
    """What there is to choose, such as `metric`."""
    choices: tuple[tuple[tuple[str, ...], Chart | Heatmap], ...]
    """A chart for each combination; the first is shown at first."""
    tall: bool = False

    def data(self) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.name,
            "title": self.title,
            "choices": [{"labels": labels, **chart.data()} for labels, chart in self.choices],
        }


def method_slots(methods: Sequence[str]) -> dict[str, int]:
    """A colour for each method, the same in every panel whichever runs there are."""
    others = sorted(set(methods) - set(METHODS))
    return {method: slot for slot, method in enumerate((*METHODS, *others))}


def token_ticks(tokens: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Powers of ten and of two MiB within the span, as `1M`, `10M`."""
    if not tokens:
        return ()
    low, high = math.floor(math.log10(min(tokens))), math.ceil(math.log10(max(tokens)))
    return tuple((10.0**power, short_number(10.0**power)) for power in range(low, high + 1))


def short_number(value: float) -> str:
    """`4456448` -> `4.46M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def binary_tokens(tokens: int) -> str:
    """Budgets are multiples of 2^20: `4456448` -> `4.25M`, else `short_number`."""
    millions = tokens / 2**20
    if millions >= 0.25 and millions == round(millions, 2):
        return f"{millions:g}M"
    return short_number(tokens)


def table_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Comma-separated values; None is an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_plain(cell) for cell in row])
    return buffer.getvalue()


def _plain(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def _point(point: Point) -> list[Any]:
    values: list[Any] = [point.x, _short(point.y)]
    if point.low is None and not point.note and not point.runs:
        return values
    return [*values, _short(point.low), _short(point.high), point.note, point.runs]


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "title": axis.title,
        "log": axis.log,
        "ticks": axis.ticks,
        "categories": axis.categories,
    }


def _short(value: float | None, digits: int = 5) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
