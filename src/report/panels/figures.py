"""Panels that hold figures. Each is one line here; its figures name it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from src.report import formatting
from src.report.figures import FIGURES
from src.report.figures.base import Figure
from src.report.files import Result
from src.report.panels import PageContext, Panel
from src.report.tables import Column, Section, Table, row
from src.report.to_plotly import to_plotly


def figures_panel(name: str, title: str) -> Callable[[PageContext], Panel | None]:
    """A panel of all figures that name it; None without runs."""

    def build(context: PageContext) -> Panel | None:
        if not context.runs:
            return None
        return Panel(name, title, {"blocks": figure_blocks(name, context)}, template="figures")

    return build


def performance_panel(context: PageContext) -> Panel | None:
    """Kernel and step performance, measured by the repository's benchmarks."""
    results = [(result, _about(result), _table(result)) for result in context.results]
    values = {"blocks": figure_blocks("performance", context), "results": results}
    return Panel("performance", "Kernel and step performance", values, template="performance")


def figure_blocks(panel: str, context: PageContext) -> list[tuple[Figure, dict[str, Any]]]:
    """Figures for the page's script: a drawn chart for each choice, and the runs behind it."""
    blocks = []
    for figure in FIGURES:
        for drawn, charts in figure.drawn(context) if figure.panel == panel else ():
            choices = [
                {"labels": labels, "runs": chart.runs, **to_plotly(chart)}
                for labels, chart in charts
            ]
            data = {"name": drawn.name, "title": drawn.title, "choices": choices}
            blocks.append((drawn, data))
    return blocks


def _about(result: Result) -> str:
    if result.content is None:
        return ""
    parts = (result.content.device, formatting.commit(result.content.commit, False))
    return formatting.text(", ".join(part for part in parts if part))


def _table(result: Result) -> Table:
    columns = (Column("figure", "text"), Column("value"), Column("unit", "text"))
    rows = [
        row(
            formatting.text(line.name),
            formatting.DASH if line.value is None else f"{line.value:.5g}",
            formatting.text(line.unit) if line.unit else "",
            formatting.text(", ".join(f"{k} {v}" for k, v in line.settings.items())),
        )
        for line in (result.content.rows if result.content else ())
    ]
    return Table((*columns, Column("settings", "text", css="muted")), (Section(tuple(rows)),))
