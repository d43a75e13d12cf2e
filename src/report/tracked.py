"""A run's own plots as Plotly figures, for a tracker: there is no page around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from src import results
from src.report.plots import perplexity_figure
from src.results import PerplexityResults

BY_LAYER = "loss/relation/by_layer"
_MAX_STEPS = 500


def run_figures(folder: Path, entries: Sequence[Mapping[str, Any]]) -> dict[str, go.Figure]:
    """The plots that a run has data for, by name.

    Args:
        folder: of the run.
        entries: its logged steps, as in `metrics.jsonl`.

    Raises:
        ResultsError: an evaluation's file is there and cannot be read.
    """
    figures: dict[str, go.Figure] = {}
    if report := results.read(folder / "evals", PerplexityResults):
        figures["plots/perplexity"] = perplexity_figure(report)
    layered = [entry for entry in entries if entry.get(BY_LAYER)]
    if layered:
        figures["plots/relation_by_layer"] = layers_figure(layered)
    return figures


def layers_figure(entries: Sequence[Mapping[str, Any]]) -> go.Figure:
    """The relation loss of every chosen layer (rows) against tokens; about 500 steps at most."""
    kept = entries[:: max(1, len(entries) // _MAX_STEPS)]
    columns = [entry[BY_LAYER] for entry in kept]
    figure = go.Figure(
        go.Heatmap(
            x=[entry["tokens"] for entry in kept],
            z=[[column[layer] for column in columns] for layer in range(len(columns[0]))],
            colorbar={"title": "KL"},
        )
    )
    figure.update_layout(template="none", margin={"l": 48, "r": 12, "t": 12, "b": 44})
    figure.update_xaxes(title="tokens")
    figure.update_yaxes(title="layer, as chosen")
    return figure
