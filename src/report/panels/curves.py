"""Training curves by tokens, drawn in the browser from the data of all runs."""

from __future__ import annotations

from src.report import formatting
from src.report.panels import PageContext, Panel
from src.report.plots import MAX_CURVE_POINTS, curve_data

_SELECTED = 2  # the newest whole runs, shown at first
_ALL_POINTS = 30_000  # logged steps of all runs together, so that many runs leave the page small
_FEWEST_POINTS = 100


def curves_panel(context: PageContext) -> Panel | None:
    """Loss, parts of the loss, learning rate and gradient norm; None without metrics."""
    runs = [run for run in context.runs if run.metrics.steps]
    if not runs:
        return None
    shown = [id(run) for run in runs if not run.problems][:_SELECTED] or [id(runs[0])]
    places = {id(run): place for place, run in enumerate(context.runs)}
    points = max(_FEWEST_POINTS, min(MAX_CURVE_POINTS, _ALL_POINTS // len(runs)))
    curves = [
        {
            "name": formatting.text(run.name),
            "run": places[id(run)],
            **curve_data(run.metrics, max_points=points),
        }
        for run in runs
    ]
    values = {"curves": curves, "selected": [id(run) in shown for run in runs]}
    return Panel("curves", "Training curves", values, script="curves.js")
