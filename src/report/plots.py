"""Figures as Plotly objects, and the data of the training curves."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from src.report import formatting
from src.report.metrics import Metrics
from src.results import PerplexityModel, PerplexityResults

NATIVE_COLOR, SCALED_COLOR = "#8a8f98", "#d9622b"
# From the last model back to the first stage; told apart with common colour-vision deficiencies,
# legible on white and on near-black.
STUDENT_COLORS = ("#2f7fd1", "#17a08a", "#a35fd0", "#c79a1b")

MAX_CURVE_POINTS = 500


def perplexity_figure(report: PerplexityResults, *, title: str | None = None) -> go.Figure:
    """Perplexity against window length (log2 spacing), one line a model.

    The figure stands alone on white, for a picture: give it a size with `update_layout(width=,
    height=)` and write it with `write_html(path, include_plotlyjs=True)`. Text is escaped, since
    Plotly reads HTML.
    """
    return go.Figure(perplexity_data(report, title=title)).update_layout(template="none")


def perplexity_data(report: PerplexityResults, *, title: str | None = None) -> dict[str, Any]:
    """The same as plain `data` and `layout`, which is much faster to make for many runs.

    The page replaces the colours of text, grid and background by its own.
    """
    windows = sorted(set(report.windows))
    students = [model.name for model in report.students]
    grid = {"gridcolor": "#e6e8ec", "zeroline": False}
    layout: dict[str, Any] = {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#22252b"},
        "margin": {"l": 48, "r": 12, "t": 12, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        "hovermode": "x unified",
        "xaxis": {
            "title": {"text": "window (tokens)"},
            "type": "log",
            "tickvals": windows,
            "ticktext": [f"{window:,}" for window in windows],
            **grid,
        },
        "yaxis": {"title": {"text": "perplexity"}, **grid, **_perplexity_axis(report)},
    }
    if title is not None:
        layout["title"] = {"text": html.escape(title, quote=False), "x": 0.01, "y": 0.97}
        layout["margin"] = {**layout["margin"], "t": 84}
    lines = [_line(model, windows, _style(model, students)) for model in report.models]
    return {"data": lines, "layout": layout}


def curve_data(metrics: Metrics, *, max_points: int = MAX_CURVE_POINTS) -> dict[str, Any]:
    """The curves of one run for the page: tokens, stages as (name, points), series by key.

    At most about `max_points` steps are kept, evenly spaced, with the ends of every stage.
    """
    kept = _kept_points(metrics.stages, max_points)
    return {
        "tokens": [metrics.tokens[i] for i in kept],
        "stages": _stage_lengths([metrics.stages[i] for i in kept]),
        "series": {
            key: [_rounded(column[i]) for i in kept] for key, column in metrics.series.items()
        },
        "every": _stride(len(metrics.stages), max_points),
    }


def _perplexity_axis(report: PerplexityResults) -> dict[str, Any]:
    """Logarithmic where the values span a factor of 4, so that the students stay apart."""
    values = [value for model in report.models for value in model.perplexity.values()]
    positive = [value for value in values if value and value > 0 and math.isfinite(value)]
    if not positive or max(positive) < 4 * min(positive):
        return {"type": "linear"}
    ticks = _log_ticks(min(positive), max(positive))
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`, closer for a narrow span."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if high > 20 * low else (1, 2, 3, 5, 7)
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]


def _style(model: PerplexityModel, students: Sequence[str]) -> dict[str, Any]:
    if model.role == "native":
        return {"color": NATIVE_COLOR, "dash": "dot", "symbol": "circle-open"}
    if model.role == "scaled":
        return {"color": SCALED_COLOR, "dash": "dash", "symbol": "diamond"}
    from_last = len(students) - 1 - students.index(model.name)
    color = STUDENT_COLORS[from_last % len(STUDENT_COLORS)]
    return {"color": color, "dash": "solid", "symbol": "circle"}


def _line(model: PerplexityModel, windows: Sequence[int], style: dict[str, Any]) -> dict[str, Any]:
    values = [model.perplexity.get(window) for window in windows]
    return {
        "type": "scatter",
        "x": list(windows),
        "y": [value if value is not None and math.isfinite(value) else None for value in values],
        "name": html.escape(formatting.text(model.name), quote=False),
        "mode": "lines+markers",
        "line": {"color": style["color"], "dash": style["dash"], "width": 2},
        "marker": {"symbol": style["symbol"], "size": 8},
        "hovertemplate": "%{y:.4g}",
    }


def _stride(count: int, max_points: int) -> int:
    return max(1, math.ceil(count / max_points))


def _kept_points(stages: Sequence[str], max_points: int) -> list[int]:
    stride = _stride(len(stages), max_points)
    last = len(stages) - 1
    return [
        i
        for i, stage in enumerate(stages)
        if i % stride == 0 or i == last or stage != stages[i + 1] or stage != stages[i - 1]
    ]


def _stage_lengths(stages: Sequence[str]) -> list[tuple[str, int]]:
    lengths: list[tuple[str, int]] = []
    for stage in stages:
        if lengths and lengths[-1][0] == stage:
            lengths[-1] = (stage, lengths[-1][1] + 1)
        else:
            lengths.append((stage, 1))
    return lengths


def _rounded(value: float | None) -> float | None:
    """Six figures are more than a pixel shows and keep the page small."""
    return None if value is None else float(f"{value:.6g}")
