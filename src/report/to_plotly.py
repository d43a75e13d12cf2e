"""A chart as a Plotly figure, in plain JSON values: the page and the tracker both show this one.

Plotly reads HTML in texts, so all texts are escaped here. Colours are for white paper; the page
replaces those of text, grid and background by its theme's. The page's script reads `meta` of a
trace: lines of CSV, and whether points at one x are alternatives.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from src.report.charts import (
    GRAYS,
    GRID,
    INK,
    PAPER,
    Axis,
    Chart,
    Heatmap,
    Point,
    Series,
    log_ticks,
)
from src.report.tables import csv_text

_LEGEND = {
    "orientation": "h",
    "x": 0,
    "y": 0,
    "yref": "container",
    "yanchor": "bottom",
    "maxheight": 2000,  # pixels: the page makes room for every row, so that none is scrolled
}
_TITLE_LETTERS = 30  # of the axis below lying bars: on a phone a longer line is cut off
_MARK = {"color": GRAYS[0], "width": 1, "dash": "dot"}
_AXIS = {"zeroline": False, "automargin": True, "gridcolor": GRID, "linecolor": GRID}
TEMPLATE = {
    "layout": {
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "hovermode": "closest",
        "barmode": "overlay",
        "legend": _LEGEND,
        # Turned labels end at their ticks, so that the last one stays inside the chart.
        "xaxis": {**_AXIS, "title": {"standoff": 8}, "autotickangles": [0, -45, -90]},
        "yaxis": {**_AXIS, "title": {"standoff": 8}},
    }
}
"""What all figures have in common, on white paper; `layout.template` in Plotly's words."""


def to_plotly(chart: Chart | Heatmap) -> dict[str, Any]:
    """`data` and `layout` of the figure, and `csv`: the header of the lines in `meta`."""
    return _heatmap(chart) if isinstance(chart, Heatmap) else _chart(chart)


def plain(text: str) -> str:
    """Text that Plotly shows as it is."""
    return html.escape(text, quote=False)


def _chart(chart: Chart) -> dict[str, Any]:
    points = [p for one in chart.series for p in one.points]
    x = _axis(chart.x, [p.x for p in points])
    y = _axis(chart.y, [p.y for p in points])
    if chart.horizontal:
        rows = (len(chart.x.categories) - 0.4, -0.6)
        lines = textwrap.wrap(chart.y.title, _TITLE_LETTERS)
        below = {"text": "<br>".join(map(plain, lines))}
        x, y = (
            {**y, "rangemode": "tozero", "title": below},
            {**x, "range": rows, "title": {"text": ""}},
        )
    right = 30 if chart.x.categories and not chart.horizontal else 12
    top = 20 if chart.marks else 8
    return {
        "data": [_trace(chart, place) for place in range(len(chart.series))],
        "csv": _line(chart.csv_header()),
        "layout": {
            "margin": {"l": 58, "r": right, "t": top, "b": 44},
            "showlegend": len(chart.series) > 1,
            **({"hovermode": "x unified"} if chart.unified else {}),
            "xaxis": x,
            "yaxis": y,
            "shapes": _shapes(chart),
            "annotations": [annotation(chart.x, at, text) for at, text in chart.marks],
        },
    }


def _titled(title: str, **options: Any) -> dict[str, Any]:
    return {"title": {"text": plain(title)}, **options}


def _axis(source: Axis, values: Sequence[float]) -> dict[str, Any]:
    if source.categories:
        places = list(range(len(source.categories)))
        names = list(map(plain, source.categories))
        span = (-0.6, len(places) - 0.4)
        return _titled(source.title, tickvals=places, ticktext=names, range=span)
    if not source.log:
        zero = {"rangemode": "tozero"} if source.from_zero else {}
        return _titled(source.title, nticks=7, **zero)
    ticks = source.ticks or log_ticks(values)
    return _titled(
        source.title,
        type="log",
        tickvals=[at for at, _ in ticks],
        ticktext=[text for _, text in ticks],
    )


def _trace(chart: Chart, place: int) -> dict[str, Any]:
    series = chart.series[place]
    shift = chart.shift(place)
    x = [_short(p.x + shift) for p in series.points]
    y = [_rounded(p.y) for p in series.points]
    look: dict[str, Any] = {"name": plain(series.name), **_hover(chart, series), "x": x, "y": y}
    if not chart.of_runs:
        look["customdata"] = [p.runs for p in series.points]
    if series.mode == "bars":
        bars = {"type": "bar", "width": chart.bar_width, "marker": {"color": series.color}}
        lying = {"orientation": "h", "x": y, "y": x} if chart.horizontal else {}
        return {**look, **bars, "textposition": "none", **lying}
    dots = series.mode == "dots"
    marker = {"color": series.color, "size": 10 if dots else 7, "symbol": series.symbol}
    width = 2 if series.slot >= 0 else 1.6
    return {
        **look,
        "type": "scatter",
        "mode": "markers" if dots else "lines+markers",
        "line": {"color": series.color, "dash": series.dash, "width": width},
        "marker": marker,
        **_intervals(series.points),
    }


def _hover(chart: Chart, series: Series) -> dict[str, Any]:
    """The text at the pointer, and lines of CSV where x and y alone do not make them."""
    meta: dict[str, Any] = {"name": _line((series.name,)), "alternatives": series.alternatives}
    value = f"%{{fullData.name}}: %{{{'x' if chart.horizontal else 'y'}:.4~r}}"
    if chart.unified:
        return {"hovertemplate": "%{y:.4~r}", "meta": meta}
    if not chart.x.categories and not any(p.note for p in series.points):
        template = f"{value}<br>%{{x:,}} {plain(chart.x.title)}<extra></extra>"
        return {"hovertemplate": template, "meta": meta}
    meta["lines"] = [
        _line(float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in row)
        for row in chart.csv_rows(series, series.points)
    ]
    texts = [_shown(chart, p) for p in series.points]
    return {"hovertemplate": f"{value}%{{text}}<extra></extra>", "text": texts, "meta": meta}


def _shown(chart: Chart, point: Point) -> str:
    """The text at a point: its interval, and what or where it is."""
    interval, names = "", chart.x.categories
    if point.low is not None:
        high = "?" if point.high is None else f"{point.high:.4g}"
        interval = f" ({point.low:.4g} to {high})"
    at = names[int(point.x)] if names else f"{point.x:,g} {chart.x.title}"
    return f"{interval}<br>{plain(point.note or at)}"


def _intervals(points: Sequence[Point]) -> dict[str, Any]:
    if all(p.low is None for p in points):
        return {}
    above = [0 if p.high is None else _rounded(p.high - p.y) for p in points]
    below = [0 if p.low is None else _rounded(p.y - p.low) for p in points]
    look = {"type": "data", "symmetric": False, "thickness": 1.3, "width": 3}
    return {"error_y": {**look, "array": above, "arrayminus": below}}


def _shapes(chart: Chart) -> list[dict[str, Any]]:
    shapes = [vertical(at) for at, _ in chart.marks]
    if chart.level is not None and chart.horizontal:
        shapes.append(vertical(chart.level))
    elif chart.level is not None:
        ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": chart.level, "y1": chart.level}
        shapes.append({"type": "line", "line": _MARK, **ends})
    return shapes


def vertical(at: float) -> dict[str, Any]:
    """A line over the whole height."""
    ends = {"x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "line": _MARK, **ends}


def annotation(along: Axis, at: float, text: str) -> dict[str, Any]:
    """Text above the plot at a value of the axis."""
    place = {"x": math.log10(at) if along.log else at, "y": 1, "yref": "paper"}
    look = {"yanchor": "bottom", "showarrow": False, "font": {"size": 11}}
    return {**place, **look, "text": plain(text)}


def _heatmap(chart: Heatmap) -> dict[str, Any]:
    levels = [[None if v is None else _short(round(v, 2)) for v in row] for row in chart.levels()]
    shown = [level for row in levels for level in row if level is not None]
    columns, rows = list(map(plain, chart.columns)), list(map(plain, chart.rows))
    at = f"{plain(chart.y_title)} %{{y}}, {plain(chart.x_title)} %{{x}}"
    last = len(chart.colors) - 1
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": columns,
        "y": rows,
        "z": levels,
        "colorscale": [(place / last, color) for place, color in enumerate(chart.colors)],
        "colorbar": _colorbar(chart, shown),
        "text": [[_rounded(value, 3) for value in row] for row in chart.values],
        "hovertemplate": f"%{{text}}<br>{at}<extra></extra>",
        "hoverongaps": False,
        "meta": {k: [_line((name,)) for name in getattr(chart, k)] for k in ("columns", "rows")},
    }
    if chart.limits:
        trace |= {"zmin": chart.limits[0], "zmax": chart.limits[1]}
    if chart.text:
        trace |= {"texttemplate": "%{text}", "xgap": 2, "ygap": 2}
    if chart.limits:
        trace |= {"textfont": {"color": INK}}
    names = {"type": "category", "showgrid": False}
    return {
        "data": [trace] if shown else [],
        "csv": _line((chart.y_title, chart.x_title, chart.value_title)),
        "layout": {
            "margin": {"l": 48, "r": 8, "t": 8, "b": 44},
            "xaxis": _titled(chart.x_title, **names, tickvals=_labelled(columns, 6), tickangle=0),
            "yaxis": _titled(
                chart.y_title, **names, tickvals=_labelled(rows, 9), autorange="reversed"
            ),
        },
    }


def _labelled(names: list[str], most: int) -> list[str]:
    """All names where they are few, else at most `most` of them, evenly spaced."""
    return names[:: math.ceil(len(names) / most)] if len(names) > 8 else names


def _colorbar(chart: Heatmap, levels: Sequence[float]) -> dict[str, Any]:
    title = {"text": plain(chart.value_title), "side": "right"}
    bar: dict[str, Any] = {"thickness": 10, "outlinewidth": 0, "len": 1, "title": title}
    if chart.log and levels:
        low, high = min(levels), max(levels)
        ticks = [low + share / 4 * (high - low) for share in range(5)]
        bar |= {"tickvals": ticks, "ticktext": [f"{10**tick:.2g}" for tick in ticks]}
    return bar


def _line(cells: Iterable[Any]) -> str:
    return csv_text([tuple(cells)]).rstrip("\n")


def _rounded(value: float | None, digits: int = 5) -> float | None:
    """What a pixel shows, which keeps the page small; None where JSON has no such number."""
    if value is None or not math.isfinite(value):
        return None
    return _short(float(f"{value:.{digits}g}"))


def _short(value: float) -> float:
    """An integer where it is one, which takes two characters less."""
    return int(value) if value.is_integer() else value
