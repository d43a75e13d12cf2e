"""All runs, faulty ones included, with the command and the folder of each."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from src.report import formatting
from src.report.panels import PageContext, Panel
from src.report.runs import Run, count_corrupt
from src.report.runs_table import run_facts, runs_table
from src.report.tables import Row, Section

_SILENCE = timedelta(minutes=10)  # a running run that wrote nothing for so long may be dead


def runs_panel(context: PageContext) -> Panel | None:
    """The list of all runs; None when there is none."""
    if not context.runs:
        return None
    table = runs_table(context.runs, context.window)
    rows = [
        _with_links(index, run, row, context)
        for index, (run, row) in enumerate(zip(context.runs, table.rows, strict=True))
    ]
    table = replace(table, sections=(Section(tuple(rows)),))
    values = {"table": table, "corrupt": count_corrupt(context.runs)}
    return Panel("runs", "All runs", values, script="runs.js")


def _with_links(index: int, run: Run, row: Row, context: PageContext) -> Row:
    """The row with addresses relative to the page, and what is wrong with the run."""
    name, state, *others = row.cells
    config = run.folder / "config.yaml"
    links = [("folder", context.link(run.folder) + "/")]
    links += [("config", context.link(config))] if config.is_file() else []
    name = replace(name, opens=True, links=tuple(links), fault=run_facts(run)["note"])
    state = replace(state, fault=_silence(run, context))
    return Row((name, state, *others), {"data-runs": str(index)})


def _silence(run: Run, context: PageContext) -> str:
    if run.state != "running" or run.record is None or run.record.updated_at is None:
        return ""
    silence = context.now - max(run.record.updated_at, run.modified_at)
    if silence <= _SILENCE:
        return ""
    return f"silent for {formatting.duration(silence.total_seconds())}"
