"""Training curves by tokens. The page's script selects runs, smooths, and draws these curves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from src.report import formatting
from src.report.charts import COLORS, DASHES, Axis
from src.report.metrics import Metrics
from src.report.panels import PageContext, Panel
from src.report.to_plotly import annotation, plain, vertical

_SELECTED = 2  # the newest runs without faults, shown at first
_RUN_POINTS = 500
_ALL_POINTS = 30_000  # logged steps of all runs together, so that many runs leave the page small
_FEWEST_POINTS = 100
_TOTAL = "loss/total"
_LOG = {"type": "log", "tickformat": "~g"}


def curves_panel(context: PageContext) -> Panel | None:
    """Loss, parts of the loss, learning rate and gradient norm; None without metrics."""
    runs = [(place, run) for place, run in enumerate(context.runs) if run.metrics.steps]
    if not runs:
        return None
    readable = [place for place, run in runs if not run.problems]
    shown = readable[:_SELECTED] or [runs[0][0]]
    points = max(_FEWEST_POINTS, min(_RUN_POINTS, _ALL_POINTS // len(runs)))
    curves = [
        {"name": plain(context.labels[place]), "run": place}
        | curve_data(run.metrics, max_points=points)
        for place, run in runs
    ]
    data = {
        "curves": curves,
        "plots": _plots({key for _, run in runs for key in run.metrics.series}),
        "colors": COLORS,
        "dashes": DASHES,
        "mark": vertical(0),
        "note": annotation(Axis(""), 0, ""),
    }
    listed = [
        (place, context.labels[place], formatting.text(run.name), place in shown)
        for place, run in runs
    ]
    every = max(curve["every"] for curve in curves)
    values = {"listed": listed, "data": data, "every": every}
    return Panel("curves", "Training curves", values, script="curves.js")


def _plots(keys: Iterable[str]) -> dict[str, Any]:
    """By name: the metrics with their labels, the layout, and how the controls change it."""
    parts = sorted(key for key in keys if key.startswith("loss/") and key != _TOTAL)
    loss = {"smooth": True, "log": _LOG}
    return {
        "total": {**_plot("Loss", {_TOTAL: ""}), **loss},
        "parts": {**_plot("Parts of the loss", {k: k[len("loss/") :] for k in parts}), **loss},
        # A schedule has no noise to smooth.
        "lr": {**_plot("Learning rate", {"lr": ""}, rangemode="tozero"), "smooth": False},
        "grad_norm": {**_plot("Gradient norm", {"grad_norm": ""}), "smooth": True},
    }


def _plot(title: str, labels: dict[str, str], **options: str) -> dict[str, Any]:
    has_parts = any(labels.values())
    x = {"rangemode": "tozero", "tickformat": "~s", "nticks": 6}
    layout = {
        "margin": {"l": 52, "r": 10, "t": 18, "b": 38},
        "showlegend": has_parts,
        "legend": {"y": -0.14, "yref": "paper", "yanchor": "top"},
        "xaxis": {"title": {"text": "" if has_parts else "tokens"}, **x},
        "yaxis": {"nticks": 6, "exponentformat": "e", "type": "linear", **options},
    }
    return {
        "title": title,
        "labels": {key: plain(label) for key, label in labels.items()},
        "layout": layout,
    }


def curve_data(metrics: Metrics, *, max_points: int = _RUN_POINTS) -> dict[str, Any]:
    """The curves of one run: tokens, stages as (name, points), series by key.

    At most about `max_points` steps are kept, evenly spaced, with the ends of every stage. Values
    have six figures, which suffice for a pixel and keep the page small.
    """
    stages = metrics.stages
    every, last = max(1, math.ceil(len(stages) / max_points)), len(stages) - 1
    kept = [
        i
        for i, stage in enumerate(stages)
        if i % every == 0 or i == last or stage != stages[i + 1] or stage != stages[i - 1]
    ]
    named = groupby(plain(stages[i]) for i in kept)
    columns = {key: [column[i] for i in kept] for key, column in metrics.series.items()}
    return {
        "tokens": [metrics.tokens[i] for i in kept],
        "stages": [(stage, len(list(points))) for stage, points in named],
        "series": {
            key: [None if value is None else float(f"{value:.6g}") for value in column]
            for key, column in columns.items()
        },
        "every": every,
    }
