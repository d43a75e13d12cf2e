"""The list of all runs: one row of texts for each, for page, drawer and terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from src.report import formatting
from src.report.files import RunSettings
from src.report.groups import gap_closed
from src.report.runs import Run
from src.report.tables import Cell, Column, Row, Section, Table


@dataclass(frozen=True)
class RunRow:
    """What is shown of one run, as text; a dash where it is not known."""

    run: str
    state: str
    experiment: str
    method: str
    model: str
    rope: str
    tokens: str
    duration: str
    gap_closed: str
    seed: str
    commit: str
    started: str
    command: str
    note: str
    """Why the run is not whole; empty if it is."""


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
    record = run.record

    def recorded(key: str) -> str:
        return formatting.text(getattr(record, key, None))

    return RunRow(
        run=formatting.text(run.name),
        state=run.state,
        experiment=recorded("experiment"),
        method=recorded("method"),
        model=recorded("model"),
        rope=_rope(run.settings),
        tokens=formatting.integer(run.tokens),
        duration=formatting.duration(run.seconds),
        gap_closed=gap_closed(run, window),
        seed=recorded("seed"),
        commit=formatting.commit(record.git_commit, record.git_dirty)
        if record
        else formatting.DASH,
        started=formatting.moment(record.started_at if record else None),
        command=recorded("command"),
        note=_note(run),
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
