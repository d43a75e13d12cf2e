"""Perplexity by window: a table and a chart a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from src.report import formatting
from src.report.panels import PageContext, Panel
from src.report.plots import perplexity_data
from src.report.runs import Run
from src.report.table import Comparison, comparison, gap_closed
from src.results import PerplexityResults

_OPEN_BLOCKS = 3  # the newest; the others unfold on a click


@dataclass(frozen=True)
class Block:
    """One evaluated run."""

    run: int
    """Its place in the list of runs."""
    name: str
    state: str
    gap_closed: str
    table: Comparison
    figure: dict[str, Any]
    is_open: bool


def comparison_panel(context: PageContext) -> Panel | None:
    """A block for each run with an evaluation; None when there is none."""
    evaluated = [(i, run, run.perplexity) for i, run in enumerate(context.runs) if run.perplexity]
    evaluated.sort(key=lambda item: item[1].record is None)  # unreadable ones last
    blocks = [
        _block(index, run, report, context.window, is_open=place < _OPEN_BLOCKS)
        for place, (index, run, report) in enumerate(evaluated)
    ]
    return Panel("comparison", "Perplexity by window", {"blocks": blocks}) if blocks else None


def _block(
    index: int, run: Run, report: PerplexityResults, window: int | None, *, is_open: bool
) -> Block:
    return Block(
        run=index,
        name=formatting.text(run.name),
        state=run.state,
        gap_closed=gap_closed(run, window),
        table=comparison(report),
        figure=perplexity_data(report),
        is_open=is_open,
    )
