"""The list of all runs: one row of texts for each, for page, drawer and terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from src.report import formatting
from src.report.files import RunRecord, RunSettings
from src.report.groups import gap_closed
from src.report.runs import Run
from src.report.tables import Cell, Column, Row, Section, Table


@dataclass(frozen=True)
class RunRow:
    """What is shown of one run, as text."""

    run: str
    state: str
    experiment: str = formatting.DASH
    method: str = formatting.DASH
    model: str = formatting.DASH
    rope: str = formatting.DASH
    tokens: str = formatting.DASH
    duration: str = formatting.DASH
    gap_closed: str = formatting.DASH
    seed: str = formatting.DASH
    commit: str = formatting.DASH
    started: str = formatting.DASH
    command: str = formatting.DASH
    note: str = ""


_COLUMNS = {
    "run": Column("run", "text"),
    "state": Column("state", "badge"),
    "method": Column("method", "text"),
    "model": Column("model", "text"),
    "rope": Column("RoPE", "text", only_page=True),
    "tokens": Column("tokens"),
    "duration": Column("duration"),
    "gap_closed": Column("gap closed"),
    "seed": Column("seed"),
    "commit": Column("commit", "code", only_page=True),
    "started": Column("started (UTC)", "text", only_page=True),
    "experiment": Column("experiment", "text", only_page=True),
    "command": Column("command", "code", only_page=True, css="command"),
}
"""By field of `RunRow`."""


def run_row(run: Run, window: int | None = None) -> RunRow:
    """The run as text; `window` as in `groups.headline_window`."""
    return RunRow(
        run=formatting.text(run.name),
        state=run.state,
        rope=_rope(run.settings),
        tokens=formatting.integer(run.tokens),
        duration=formatting.duration(run.seconds),
        gap_closed=gap_closed(run, window),
        note=_note(run),
        **(_record_cells(run.record) if run.record else {}),
    )


def runs_table(runs: Iterable[Run], window: int | None = None) -> Table:
    """All runs in the given order."""
    rows = [run_row(run, window) for run in runs]
    lines = [Row(tuple(Cell(getattr(row, name)) for name in _COLUMNS)) for row in rows]
    return Table(tuple(_COLUMNS.values()), (Section(tuple(lines)),))


def run_notes(runs: Iterable[Run]) -> list[Text]:
    """A line for every run that is not whole: its name and why."""
    rows = [run_row(run) for run in runs]
    return [Text(f"{row.run}: {row.note}") for row in rows if row.note]


def _record_cells(record: RunRecord) -> dict[str, str]:
    return {
        "experiment": formatting.text(record.experiment),
        "method": formatting.text(record.method),
        "model": formatting.text(record.model),
        "seed": formatting.text(record.seed),
        "commit": formatting.commit(record.git_commit, record.git_dirty),
        "started": formatting.moment(record.started_at),
        "command": formatting.text(record.command),
    }


def _rope(settings: RunSettings) -> str:
    rope = settings.rope
    length = None if rope.target_length is None else f"to {rope.target_length:,}"
    return formatting.text(" ".join(part for part in (rope.type, length) if part))


def _note(run: Run) -> str:
    """Why the run is not whole: faults of its files, then its own error."""
    parts = [f"corrupt: {problem}" for problem in run.problems]
    if run.record and run.record.error:
        parts.append(f"error: {run.record.error}")
    return formatting.text("; ".join(parts)) if parts else ""
