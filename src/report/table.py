"""Rows of the tables: the models of one evaluation by window, and the list of all runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from src.report import formatting
from src.report.files import RunRecord, RunSettings
from src.report.runs import Run
from src.results import PerplexityModel, PerplexityResults


@dataclass(frozen=True)
class Cell:
    """The text of one perplexity; `best`: the lowest of the students at this window."""

    text: str
    best: bool


@dataclass(frozen=True)
class ModelRow:
    """A model's perplexity, one cell a window."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ScoreRow:
    """A score of one trained model, one text a window."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The table of one evaluation: models by windows in tokens, the scores below."""

    windows: tuple[int, ...]
    models: tuple[ModelRow, ...]
    scores: tuple[ScoreRow, ...]


def comparison(report: PerplexityResults) -> Comparison:
    """The report as a table. Scores are shown as the evaluation wrote them, or as dashes."""
    windows = tuple(sorted(set(report.windows)))
    best = {window: _best_student(report.students, window) for window in windows}

    def row(model: PerplexityModel) -> ModelRow:
        cells = (
            Cell(formatting.perplexity(model.perplexity.get(window)), best[window] is model)
            for window in windows
        )
        return ModelRow(formatting.text(model.name), tuple(cells))

    return Comparison(
        windows=windows,
        models=tuple(row(model) for model in report.models),
        scores=tuple(
            line
            for model in report.students
            if model is report.final or model.scores
            for line in _score_rows(model, windows)
        ),
    )


def _score_rows(model: PerplexityModel, windows: Sequence[int]) -> tuple[ScoreRow, ScoreRow]:
    scores = [model.score(window) for window in windows]
    name = formatting.text(model.name)
    return (
        ScoreRow(f"gap closed, {name}", tuple(formatting.share(s.gap_closed) for s in scores)),
        ScoreRow(f"recovery, {name}", tuple(formatting.percent(s.recovery) for s in scores)),
    )


def headline_window(report: PerplexityResults, window: int | None = None) -> int | None:
    """`window` if it was evaluated; by default the evaluation's own headline, else the largest."""
    wanted = window or report.headline
    if wanted is not None:
        return wanted if wanted in report.windows else None
    return max(report.windows)


def gap_closed(run: Run, window: int | None = None) -> str:
    """The share of the gap that the run's last model closed at its headline window."""
    report = run.perplexity
    chosen = headline_window(report, window) if report else None
    if report is None or report.final is None or chosen is None:
        return formatting.DASH
    return formatting.share(report.final.score(chosen).gap_closed)


def _best_student(students: Sequence[PerplexityModel], window: int) -> PerplexityModel | None:
    measured = [
        (value, model)
        for model in students
        if (value := model.perplexity.get(window)) is not None and math.isfinite(value)
    ]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


@dataclass(frozen=True)
class RunRow:
    """One run as text; the fields are the columns of the list."""

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


def run_row(run: Run, window: int | None = None) -> RunRow:
    """The run as a row of the list; `window` as in `headline_window`."""
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


_TERMINAL_COLUMNS = ("run", "state", "method", "model", "tokens", "duration", "gap_closed", "seed")


def runs_table(runs: Iterable[Run], window: int | None = None) -> Table:
    """The list of runs for a terminal. Names are shown as they are, never read as markup."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _TERMINAL_COLUMNS:
        numbers = column in ("tokens", "duration", "gap_closed", "seed")
        table.add_column(
            column.replace("_", " "), justify="right" if numbers else "left", overflow="fold"
        )
    for run in runs:
        row = run_row(run, window)
        table.add_row(*(Text(getattr(row, column)) for column in _TERMINAL_COLUMNS))
    return table


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
