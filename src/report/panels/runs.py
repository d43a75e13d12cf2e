"""All runs, whole or not, with the command and the folder of each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from src.report import formatting
from src.report.panels import PageContext, Panel
from src.report.runs import Run, count_corrupt
from src.report.table import RunRow, run_row

_SILENCE = timedelta(minutes=10)  # a running run that wrote nothing for so long may be dead


@dataclass(frozen=True)
class ListedRun:
    """A row with its links, relative to the page."""

    row: RunRow
    folder: str
    config: str | None
    silent_for: str | None


def runs_panel(context: PageContext) -> Panel | None:
    """The list of all runs; None when there is none."""
    if not context.runs:
        return None
    values = {
        "listed": [_listed(run, context) for run in context.runs],
        "corrupt": count_corrupt(context.runs),
    }
    return Panel("runs", "All runs", values, script="runs.js")


def _listed(run: Run, context: PageContext) -> ListedRun:
    config = run.folder / "config.yaml"
    return ListedRun(
        row=run_row(run, context.window),
        folder=context.link(run.folder) + "/",
        config=context.link(config) if config.is_file() else None,
        silent_for=_silence(run, context),
    )


def _silence(run: Run, context: PageContext) -> str | None:
    if run.state != "running" or run.record is None or run.record.updated_at is None:
        return None
    silence = context.now - max(run.record.updated_at, run.modified_at)
    return formatting.duration(silence.total_seconds()) if silence > _SILENCE else None
