"""Training curves by tokens, drawn in the browser from the data of all runs."""

from __future__ import annotations

from src.report import formatting
from src.report.panels import PageContext, Panel
from src.report.plots import curve_data

_SELECTED = 2  # the newest whole runs, shown at first


def curves_panel(context: PageContext) -> Panel | None:
    """Loss, parts of the loss, learning rate and gradient norm; None without metrics."""
    runs = [run for run in context.runs if run.metrics.steps]
    if not runs:
        return None
    shown = [run for run in runs if not run.problems][:_SELECTED] or runs[:1]
    curves = [{"name": formatting.text(run.name), **curve_data(run.metrics)} for run in runs]
    values = {"curves": curves, "selected": [run in shown for run in runs]}
    return Panel("curves", "Training curves", values, script="curves.js")
