"""What to type when there is no run yet."""

from __future__ import annotations

from src.report.panels import PageContext, Panel


def start_panel(context: PageContext) -> Panel | None:
    """The first commands; None once there is a run."""
    return None if context.runs else Panel("start", "No runs yet")
