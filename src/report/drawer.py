"""What the page shows of a run after a click: facts, command, config and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src.report import formatting
from src.report.runs import Run
from src.report.runs_table import run_row
from src.report.to_plotly import TEMPLATE

_FILES = ("config.yaml", "run.json", "metrics.jsonl")


def page_data(
    runs: Sequence[Run], link: Callable[[Path], str], window: int | None
) -> dict[str, Any]:
    """All runs for the page's script, and the look of its charts.

    Configs share most of their lines, which are stored once.
    """
    lines: dict[str, int] = {}
    listed = [_run(run, link, window, lines) for run in runs]
    return {"runs": listed, "lines": list(lines), "template": TEMPLATE}


def sweep_name(run: Run) -> str:
    """The sweep that the run is a job of."""
    return run.record.sweep.name if run.record and run.record.sweep else ""


def _run(
    run: Run, link: Callable[[Path], str], window: int | None, lines: dict[str, int]
) -> dict[str, Any]:
    row = run_row(run, window)
    record = run.record
    config = [lines.setdefault(line, len(lines)) for line in run.config.text.splitlines()]
    sweep = sweep_name(run)
    if record and record.sweep and record.sweep.job is not None:
        sweep_and_job = f"{sweep}, job {record.sweep.job}"
    else:
        sweep_and_job = sweep
    facts = {
        "experiment": row.experiment,
        "sweep": formatting.text(sweep_and_job),
        "method": row.method,
        "model": row.model,
        "scaling": row.rope,
        "tokens": row.tokens,
        "seed": row.seed,
        "duration": row.duration,
        "device": formatting.text(record.device if record else None)
        + (f" x{record.world_size}" if record and record.world_size > 1 else ""),
        "commit": row.commit,
        "started": row.started,
        "gap closed": row.gap_closed,
    }
    return {
        "name": row.run,
        "state": row.state,
        # What the filters choose by; without a record nothing is known.
        "experiment": row.experiment if record else "",
        "model": row.model if record else "",
        "sweep": formatting.text(sweep) if sweep else "",
        "facts": [[key, value] for key, value in facts.items() if value != formatting.DASH],
        "note": row.note,
        "command": formatting.text(record.command) if record and record.command else "",
        "files": [[path.name, link(path)] for path in run_files(run.folder)],
        "config": config,
    }


def run_files(folder: Path) -> list[Path]:
    """The files of a run that are shown: config, record, metrics and evaluations."""
    files = [folder / name for name in _FILES]
    files += sorted((folder / "evals").glob("*.json"))
    return [path for path in files if path.is_file()]
