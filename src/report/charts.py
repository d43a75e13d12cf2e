"""A chart as plain data, independent of how it is drawn.

`to_plotly` turns it into a Plotly figure for the page and the tracker, `to_matplotlib` into a
picture for a paper. Neither decides on a colour, an offset or a point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from src.report.names import METHODS
from src.report.tables import csv_text

# Distinguishable with common colour-vision deficiencies; legible on white and on near-black.
COLORS = (
    *("#2f7fd1", "#d9622b", "#17a08a", "#a35fd0", "#c79a1b", "#d6568a", "#6b8e3d", "#8f5a3c"),
    *("#4aa8d8", "#b23a48", "#5b6bbf", "#9aa52c", "#0f6e6e", "#7b4b94", "#c97b84"),
    *("#3f9e4d", "#7f6000", "#44546a", "#e08bb5"),
)
GRAY, LIGHT_GRAY = -1, -2  # slots of what is no method, such as the native model
GRAYS = ("#8a8f98", "#c9cdd5")
SEQUENTIAL = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""Stops of the colour scale of a heatmap, evenly spaced."""
DIVERGING = ("#e8935f", "#efe9df", "#7fb5ea")
"""The same for values with fixed limits; dark text can be read on all of it."""
INK, MUTED, GRID, PAPER = "#22252b", "#5d646f", "#e6e8ec", "#ffffff"

_MOST_TICKS = 9

Dash = Literal["solid", "dash", "dot", "dashdot", "longdash"]
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot", "dashdot", "longdash")
Symbol = Literal["circle", "circle-open", "diamond"]
FileFormat = Literal["pdf", "svg", "png"]  # a format of a file


@dataclass(frozen=True)
class Point:
    """One point; `x` is a number, or a place among an axis's categories."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    runs: tuple[int, ...] = ()
    """The runs it comes from, as places in the list of runs; empty: it is always shown."""
    label: str = ""  # text drawn beside it


@dataclass(frozen=True)
class Series:
    """Points of one name and look."""

    name: str
    points: tuple[Point, ...]
    slot: int = 0
    dash: Dash = "solid"
    mode: Literal["line", "dots", "bars"] = "line"
    alternatives: bool = False
    """Points at the same x are alternatives, the preferred one first: one of them is drawn."""
    symbol: Symbol = "circle"

    @property
    def color(self) -> str:
        """As `#rrggbb`."""
        return GRAYS[-1 - self.slot] if self.slot < 0 else COLORS[self.slot % len(COLORS)]

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
    """`categories` are names at 0, 1, ...; `ticks` are the labelled values, None: chosen."""

    title: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    categories: tuple[str, ...] = ()
    from_zero: bool = False


@dataclass(frozen=True)
class Chart:
    """Series over two axes."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    marks: tuple[tuple[float, str], ...] = ()  # vertical lines with a label
    level: float | None = None  # a line at this value of y
    of_runs: tuple[int, ...] = ()
    """The runs that the whole chart shows; empty: its points name theirs."""
    horizontal: bool = False  # bars lie: x runs from top to bottom
    unified: bool = False  # hovering shows all series at one x

    @property
    def runs(self) -> tuple[int, ...]:
        """All runs behind the chart."""
        points = (p for one in self.series for p in one.points)
        return self.of_runs or tuple(sorted({run for p in points for run in p.runs}))

    @property
    def bar_width(self) -> float:
        """In units of x."""
        return min(0.64, 0.84 / max(1, len(self.series)))

    def shift(self, place: int) -> float:
        """The offset in x of the series at `place`, so that no series hides another."""
        count = len(self.series)
        dots = min(0.16, 0.7 / count)
        step = {"line": 0.0, "dots": dots, "bars": self.bar_width}[self.series[place].mode]
        return (place - (count - 1) / 2) * step

    def csv_header(self) -> tuple[str, ...]:
        """Names of the columns of `csv_rows`."""
        return ("series", self.x.title, self.y.title, "low", "high", "note")

    def csv_rows(self, series: Series, points: Sequence[Point]) -> Iterator[tuple[Any, ...]]:
        """One row for each of `points`."""
        names = self.x.categories
        for p in points:
            x = names[int(p.x)] if names else f"{p.x:.12g}"
            yield (series.name, x, p.y, p.low, p.high, p.note)

    def csv(self) -> str:
        """The drawn points as comma-separated values."""
        rows = [row for one in self.series for row in self.csv_rows(one, one.drawn)]
        return csv_text([self.csv_header(), *rows])


@dataclass(frozen=True)
class Heatmap:
    """Values over two axes of distinct names: `values[row][column]`, rows from top to bottom."""

    x_title: str
    y_title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    value_title: str
    runs: tuple[int, ...] = ()
    limits: tuple[float, float] | None = None
    """Ends of the colour scale; None: the smallest and the largest value."""
    log: bool = False  # colours follow the logarithm; values that are not positive are left blank
    text: bool = False  # write the values into the cells

    @property
    def colors(self) -> tuple[str, ...]:
        """Stops of the colour scale, evenly spaced."""
        return DIVERGING if self.limits else SEQUENTIAL

    def levels(self) -> list[list[float | None]]:
        """The values that the colours show: the values, or their logarithms to base 10."""

        def level(value: float | None) -> float | None:
            if value is None or not math.isfinite(value) or (self.log and value <= 0):
                return None
            return math.log10(value) if self.log else value

        return [[level(value) for value in row] for row in self.values]

    def csv(self) -> str:
        """One line for each cell."""
        rows = [
            (row, column, value)
            for row, values in zip(self.rows, self.values, strict=True)
            for column, value in zip(self.columns, values, strict=True)
        ]
        return csv_text([(self.y_title, self.x_title, self.value_title), *rows])


def method_slots(methods: Sequence[str]) -> dict[str, int]:
    """A colour for each method, the same in every panel for any runs."""
    others = sorted(set(methods) - set(METHODS))
    return {method: slot for slot, method in enumerate((*METHODS, *others))}


def log_ticks(values: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """Round numbers around the positive `values`: at least two of them lie within their span."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not positive:
        return ()
    low, high = min(positive), max(positive)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 3, 5, 7) if high <= 20 * low else (1, 2, 5) if last - first < 4 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    if sum(low <= tick <= high for tick in ticks) < 2:
        ticks = _even_ticks(low, high)
    return tuple((tick, f"{tick:,.10g}") for tick in ticks)


def _even_ticks(low: float, high: float) -> list[float]:
    """About five multiples of 1, 2 or 5 times a power of ten, for a span of less than a decade."""
    span = high - low or low
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= rough)
    begin, end = math.floor(low / step) - 1, math.ceil(high / step) + 1
    return [place * step for place in range(begin, end + 1) if place > 0]


def token_ticks(tokens: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """The numbers of tokens themselves, those left out that would run into another."""
    distinct = sorted(set(tokens))
    if not distinct:
        return ()
    apart = math.log(distinct[-1] / distinct[0]) / _MOST_TICKS
    kept = [distinct[-1]]
    for at in reversed(distinct[:-1]):
        if math.log(kept[-1] / at) >= apart:
            kept.append(at)
    return tuple((at, binary_tokens(round(at))) for at in reversed(kept))


def short_number(value: float) -> str:
    """`4456448` -> `4.46M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def binary_tokens(tokens: int) -> str:
    """Budgets are multiples of 2^20 or 2^10: `4456448` -> `4.25M`; others as `short_number`."""
    millions = tokens / 2**20
    if millions >= 0.25 and millions == round(millions, 2):
        return f"{millions:g}M"
    is_round = 0 < tokens < 2**20 and tokens % 1024 == 0
    return f"{tokens // 1024}K" if is_round else short_number(tokens)


def short_length(tokens: int) -> str:
    """`32768` -> `32K`."""
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"
