"""The panel of the headline table: methods at their budgets."""

from __future__ import annotations

from src.report.headline import headline, missing_suites
from src.report.panels import PageContext, Panel

_ALL_SHOWN = 12  # so few rows are shown with all their variants


def headline_panel(context: PageContext) -> Panel | None:
    """The table of all groups; None without runs."""
    if not context.runs:
        return None
    values = {
        "table": headline(context.groups),
        "missing": missing_suites(context.groups),
        "all_shown": len(context.groups) <= _ALL_SHOWN,
        "unfinished": sum(run.state != "finished" for run in context.runs),
    }
    return Panel("headline", "Methods compared", values, script="headline.js")
