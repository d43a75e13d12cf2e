"""The plots of one run for a tracker, which has no page around them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import plotly.graph_objects as go

from src import results
from src.report.charts import Chart, Heatmap
from src.report.figures.layers import layer_map
from src.report.figures.windows import perplexity_chart
from src.report.files import AbsentFile
from src.report.metrics import read_metrics
from src.report.to_plotly import TEMPLATE, to_plotly
from src.results import PerplexityResults

_BY_LAYER = "loss/relation/by_layer"


def run_figures(folder: Path) -> dict[str, go.Figure]:
    """The plots that the run in `folder` has data for, by name.

    Raises ResultsError if an evaluation, UnreadableFile if the metrics cannot be read.
    """
    charts: dict[str, Chart | Heatmap | None] = {}
    if report := results.read(folder / "evals", PerplexityResults):
        charts["plots/perplexity"] = perplexity_chart(report)
    with suppress(AbsentFile):  # nothing logged
        metrics = read_metrics(folder / "metrics.jsonl")
        if _BY_LAYER in metrics.layers:
            charts["plots/relation_by_layer"] = layer_map(metrics, _BY_LAYER)
    drawn = {name: to_plotly(chart) for name, chart in charts.items() if chart}
    return {
        name: go.Figure(parts["data"], parts["layout"]).update_layout(template=TEMPLATE)
        for name, parts in drawn.items()
    }
