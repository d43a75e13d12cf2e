"""Perplexity by window: a table and a chart for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from src.report import formatting
from src.report.figures.windows import perplexity_chart
from src.report.groups import gap_closed
from src.report.noise import Mark
from src.report.panels import PageContext, Panel
from src.report.tables import Cell, Column, Row, Section, Table, row
from src.report.to_plotly import to_plotly
from src.results import PerplexityModel, PerplexityResults

_OPEN_BLOCKS = 3  # the newest; the others unfold on a click


def comparison_panel(context: PageContext) -> Panel | None:
    """A block for each run with an evaluation; None when there is none."""
    evaluated = [(i, run, run.perplexity) for i, run in enumerate(context.runs) if run.perplexity]
    evaluated.sort(key=lambda item: item[1].record is None)  # unreadable ones last
    blocks = [
        {
            "run": index,
            "name": context.labels[index],
            "folder": formatting.text(run.name),
            "state": run.state,
            "gap_closed": formatting.share(gap_closed(run, context.window)),
            "table": perplexity_table(report),
            "figure": to_plotly(perplexity_chart(report)),
            "is_open": place < _OPEN_BLOCKS,
        }
        for place, (index, run, report) in enumerate(evaluated)
    ]
    return Panel("comparison", "Perplexity by window", {"blocks": blocks}) if blocks else None


def perplexity_table(report: PerplexityResults) -> Table:
    """Models by windows in tokens, below them the scores as the evaluation wrote them."""
    windows = sorted(set(report.windows))
    best = {window: _best_student(report.students, window) for window in windows}
    models = [
        row(
            formatting.text(model.name),
            *(
                Cell(
                    formatting.perplexity(model.perplexity.get(window)),
                    mark=Mark.BEST if best[window] is model else Mark.ABSENT,
                )
                for window in windows
            ),
        )
        for model in report.models
    ]
    scores: list[Row] = []
    for model in report.students:
        if model is report.final or model.scores:
            name, by_window = formatting.text(model.name), [model.score(w) for w in windows]
            gaps = (formatting.share(score.gap_closed) for score in by_window)
            recoveries = (formatting.percent(score.recovery) for score in by_window)
            scores += [row(f"gap closed, {name}", *gaps), row(f"recovery, {name}", *recoveries)]
    columns = (Column("model", "text"), *(Column(f"{window:,}") for window in windows))
    return Table(columns, (Section(tuple(models)), Section(tuple(scores), css="scores")))


def _best_student(students: Sequence[PerplexityModel], window: int) -> PerplexityModel | None:
    measured = [
        (value, model)
        for model in students
        if (value := model.perplexity.get(window)) is not None and math.isfinite(value)
    ]
    if len(measured) < 2:  # nothing to compare it with
        return None
    return min(measured, key=lambda pair: pair[0])[1]
