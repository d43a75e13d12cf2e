"""A chart as a picture for a paper, drawn by matplotlib: one figure on white, without a browser."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from src.report.charts import (
    GRAYS,
    GRID,
    INK,
    MUTED,
    PAPER,
    Axis,
    Chart,
    Dash,
    FileFormat,
    Heatmap,
    Series,
    log_ticks,
)

SIZE = (6.4, 4.0)  # inches
PIXELS = 200  # of a PNG, an inch
_DASHES: dict[Dash, Any] = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (8, 3)),
}
_MARKERS = {"circle": "o", "circle-open": "o", "diamond": "D"}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "grid.color": GRID,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "linearard",
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def pictures(
    chart: Chart | Heatmap,
    title: str,
    formats: Sequence[FileFormat],
    size: tuple[float, float] = SIZE,
    stamp: str = "",
) -> dict[FileFormat, bytes]:
    """The contents of one file for each format; the same chart gives the same bytes.

    `stamp` is written across the picture, such as that its data are made up.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        axes = figure.add_subplot(title=title)
        if isinstance(chart, Heatmap):
            _heatmap(chart, figure, axes)
        else:
            _chart(chart, figure, axes)
        if stamp:
            look: dict[str, Any] = {"rotation": 18, "fontsize": 30, "color": MUTED, "alpha": 0.3}
            place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
            axes.text(0.5, 0.5, stamp, **place, **look)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once for all formats
        return {kind: _written(figure, kind) for kind in formats}


def _written(figure: Figure, kind: FileFormat) -> bytes:
    buffer = io.BytesIO()
    no_date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
    figure.savefig(
        buffer, format=kind, dpi=PIXELS, metadata=no_date, bbox_inches="tight", pad_inches=0.06
    )
    return buffer.getvalue()


def _chart(chart: Chart, figure: Figure, axes: Axes) -> None:
    points = [p for one in chart.series for p in one.drawn]
    for place, one in enumerate(chart.series):
        _series(chart, one, chart.shift(place), axes)
    for at, text in chart.marks:
        axes.axvline(at, color=GRAYS[0], lw=0.8, ls=":")
        place = {"xy": (at, 1), "xycoords": ("data", "axes fraction"), "xytext": (0, 2)}
        axes.annotate(text, **place, textcoords="offset points", ha="center", fontsize=7.5)
    if chart.level is not None:
        line = axes.axvline if chart.horizontal else axes.axhline
        line(chart.level, color=GRAYS[0], lw=0.8, ls=":")
    _axis(chart.x, [p.x for p in points], axes, "y" if chart.horizontal else "x")
    _axis(chart.y, [p.y for p in points], axes, "x" if chart.horizontal else "y")
    if chart.marks:
        axes.set_title(axes.get_title("left"), pad=16)
    if chart.horizontal:
        axes.invert_yaxis()
    if len(chart.series) > 1:
        longest = max(len(one.name) for one in chart.series)
        columns = max(1, min(len(chart.series), 100 // (longest + 8)))
        figure.legend(loc="outside lower center", ncols=columns)


def _series(chart: Chart, series: Series, shift: float, axes: Axes) -> None:
    x = [p.x + shift for p in series.drawn]
    y = [p.y for p in series.drawn]
    if series.mode == "bars":
        bars = axes.barh if chart.horizontal else axes.bar
        bars(x, y, chart.bar_width, color=series.color, label=series.name)
    else:
        low = [0 if p.low is None else max(0.0, p.y - p.low) for p in series.drawn]
        high = [0 if p.high is None else max(0.0, p.high - p.y) for p in series.drawn]
        has_intervals = any(p.low is not None for p in series.drawn)
        dots = series.mode == "dots"
        axes.errorbar(
            x,
            y,
            yerr=(low, high) if has_intervals else None,
            color=series.color,
            ls="none" if dots else _DASHES[series.dash],
            marker=_MARKERS[series.symbol],
            markerfacecolor=PAPER if series.symbol == "circle-open" else series.color,
            markersize=6 if dots else 4,
            lw=1.4,
            elinewidth=1,
            capsize=2,
            label=series.name,
        )
    for p, at in zip(series.drawn, x, strict=True):
        if p.label:
            # On paper's colour, so that no line of the grid strikes it through.
            ground = {"boxstyle": "square,pad=0.1", "fc": PAPER, "ec": "none"}
            # A label beside dots lies below them, so that it hides none.
            place = _beside(at, max(x)) if series.mode == "dots" else _ABOVE
            axes.annotate(p.label, (at, p.y), **place, bbox=ground, fontsize=7.5)
            axes.margins(0.1)


_ABOVE: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}


def _beside(at: float, last: float) -> dict[str, Any]:
    """At the left of a point, and of one that lies far at the left at its right."""
    is_right = at < 0.2 * last
    ends = {"xytext": (7 if is_right else -7, 0), "ha": "left" if is_right else "right"}
    return {**ends, "textcoords": "offset points", "va": "center", "zorder": 1.8}


def _axis(source: Axis, values: Sequence[float], axes: Axes, which: Literal["x", "y"]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(source.title)
    axis.grid(not source.categories)
    axis.set_tick_params(length=0)
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    if source.categories:
        axis.set_ticks(range(len(source.categories)), source.categories)
        limits(-0.6, len(source.categories) - 0.4)
    elif source.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        low, high = (axes.get_xlim if which == "x" else axes.get_ylim)()
        ticks = [tick for tick in source.ticks or log_ticks(values) if low <= tick[0] <= high]
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_ticks([at for at, _ in ticks], [text for _, text in ticks])
        limits(low, high)
    elif source.from_zero:
        limits(0, 1.1 * max([1e-9, *values]))


def _heatmap(chart: Heatmap, figure: Figure, axes: Axes) -> None:
    levels = np.array(chart.levels(), dtype=float)
    colors = LinearSegmentedColormap.from_list("scale", chart.colors)
    limits = chart.limits or (None, None)
    image = axes.imshow(levels, colors, aspect="auto", vmin=limits[0], vmax=limits[1])
    bar = figure.colorbar(image, label=chart.value_title, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    if chart.log:
        bar.ax.yaxis.set_major_formatter(lambda level, _: f"{10**level:.2g}")
    for which, names, most in (("x", chart.columns, 8), ("y", chart.rows, 12)):
        axis = axes.xaxis if which == "x" else axes.yaxis
        # Where cells have values, each is looked up by its names.
        every = 1 if chart.text else max(1, math.ceil(len(names) / most))
        axis.set_ticks(range(0, len(names), every), names[::every])
        axis.set_tick_params(length=0)
        if which == "x" and chart.text and len(names) > most:
            axis.set_tick_params(rotation=90)
    axes.set(xlabel=chart.x_title, ylabel=chart.y_title)
    axes.spines[:].set_visible(False)
    if chart.text:
        _values(chart, image, axes)


def _values(chart: Heatmap, image: Any, axes: Axes) -> None:
    """Write the values into their cells, dark on light and light on dark."""
    for r, row in enumerate(chart.values):
        for c, value in enumerate(row):
            if value is not None:
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
                color = PAPER if dark else INK
                axes.text(c, r, f"{value:.3g}", ha="center", va="center", color=color)
