"""Methods at their budgets: the table that answers the question."""

from __future__ import annotations

from src.report.headline import headline
from src.report.panels import PageContext, Panel

_ALL_SHOWN = 12  # so few rows are shown with all their variants


def headline_panel(context: PageContext) -> Panel | None:
    """The table of all groups; None without runs."""
    if not context.runs:
        return None
    table = headline(context.groups)
    rows = sum(len(block.rows) for block in table.blocks)
    unfinished = sum(run.state != "finished" for run in context.runs)
    values = {"table": table, "all_shown": rows <= _ALL_SHOWN, "unfinished": unfinished}
    return Panel("headline", "Methods compared", values, script="headline.js")
