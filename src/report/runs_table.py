"""Facts of runs as texts: rows of the list of runs, and what the page shows after a click."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from src.report import formatting
from src.report.charts import short_length
from src.report.files import RunSettings, is_regular
from src.report.formatting import DASH
from src.report.groups import ReportData, gap_closed
from src.report.names import method_name, scaling_name
from src.report.runs import Run
from src.report.tables import Cell, Column, Section, Table, row
from src.report.to_plotly import TEMPLATE

_COLUMNS = {
    "run": Column("run", "text"),
    "state": Column("state", "badge"),
    "method": Column("method", "text"),
    "model": Column("model", "text"),
    "scaling": Column("scaling", "text", only_page=True, css="whole"),
    "tokens": Column("tokens"),
    "duration": Column("duration"),
    "gap closed": Column("gap closed"),
    "seed": Column("seed"),
    "started": Column("started (UTC)", "text", only_page=True),
    "commit": Column("commit", "code", only_page=True, css="whole"),
}
"""By key of `run_facts`."""
_ELSEWHERE = ("run", "state", "command", "note")  # facts that the page shows elsewhere
_FILES = ("config.yaml", "run.json", "metrics.jsonl")


def run_facts(run: Run, window: int | None = None) -> dict[str, str]:
    """The run as texts, with dashes for unknown facts; `window` as in `groups.headline_window`.

    `note` says why the run is incomplete or faulty; else it is empty.
    """
    record = run.record

    def recorded(key: str) -> str:
        return formatting.text(getattr(record, key, None))

    faults = [f"corrupt: {problem}" for problem in run.problems]
    if record and record.error:
        faults.append(f"error: {record.error}")
    ranks = f" x{record.world_size}" if record and record.world_size > 1 else ""
    job = record.sweep.job if record and record.sweep else None
    return {
        "run": formatting.text(run.name),
        "state": run.state,
        "experiment": recorded("experiment"),
        "sweep": formatting.text(run.sweep if job is None else f"{run.sweep}, job {job}"),
        "method": formatting.text(method_name(run.method)) if run.method else DASH,
        "model": formatting.text(run.model_name) if record and record.model else DASH,
        "scaling": _scaling(run.settings),
        "tokens": formatting.integer(run.tokens),
        "seed": recorded("seed"),
        "duration": formatting.duration(run.seconds),
        "device": recorded("device") + ranks,
        "commit": formatting.commit(record and record.git_commit, record and record.git_dirty),
        "started": formatting.moment(record and record.started_at),
        "gap closed": formatting.share(gap_closed(run, window)),
        "command": recorded("command"),
        "note": formatting.text("; ".join(faults)) if faults else "",
    }


def runs_table(runs: Sequence[Run], window: int | None = None) -> Table:
    """All runs in the given order."""
    rows = []
    for run in runs:
        facts: dict[str, Any] = run_facts(run, window)
        if run.seconds is not None:
            sorting = {"data-sort": str(run.seconds)}
            facts["duration"] = Cell(facts["duration"], attributes=sorting)
        rows.append(row(*(facts[name] for name in _COLUMNS)))
    return Table(tuple(_COLUMNS.values()), (Section(tuple(rows)),))


def run_notes(runs: Iterable[Run]) -> list[Text]:
    """A line for every incomplete or faulty run: its name and why."""
    facts = [run_facts(run) for run in runs]
    return [Text(f"{one['run']}: {one['note']}") for one in facts if one["note"]]


def _scaling(settings: RunSettings) -> str:
    rope = settings.rope
    length = "" if rope.target_length is None else f"to {short_length(rope.target_length)}"
    return formatting.text(f"{scaling_name(rope.type or '', settings.factor)} {length}".strip())


def page_data(data: ReportData, link: Callable[[Path], str]) -> dict[str, Any]:
    """All runs for the page's script, and the look of its charts.

    Configs share most of their lines, which are stored once.
    """
    lines: dict[str, int] = {}
    listed = [
        {"label": label, **_run(run, link, data.window, lines)}
        for run, label in zip(data.runs, data.labels, strict=True)
    ]
    return {"runs": listed, "lines": list(lines), "template": TEMPLATE}


def _run(
    run: Run, link: Callable[[Path], str], window: int | None, lines: dict[str, int]
) -> dict[str, Any]:
    facts = run_facts(run, window)
    config = [lines.setdefault(line, len(lines)) for line in run.config.text.splitlines()]
    shown = {key: value for key, value in facts.items() if key not in _ELSEWHERE}
    is_recorded = run.record is not None
    scaling = scaling_name(run.settings.rope.type or "", run.settings.factor)
    return {
        "name": facts["run"],
        "state": facts["state"],
        # The keys of the filters; without a record they are unknown.
        "experiment": facts["experiment"] if is_recorded else "",
        "method": facts["method"] if is_recorded else "",
        "model": facts["model"] if is_recorded else "",
        "scaling": formatting.text(scaling) if scaling else "",
        "sweep": formatting.text(run.sweep) if run.sweep else "",
        "facts": [[key, value] for key, value in shown.items() if value != formatting.DASH],
        "note": facts["note"],
        "command": facts["command"] if run.record and run.record.command else "",
        "files": [[path.name, link(path)] for path in run_files(run.folder)],
        "config": config,
    }


def run_files(folder: Path) -> list[Path]:
    """The files of a run that are shown: config, record, metrics and evaluations."""
    files = [folder / name for name in _FILES]
    files += sorted((folder / "evals").glob("*.json"))
    return [path for path in files if is_regular(path)]
