"""The details of a run that the page shows after a click: facts, command, config and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from src.report import formatting
from src.report.runs import Run
from src.report.runs_table import run_facts
from src.report.to_plotly import TEMPLATE

_ELSEWHERE = ("run", "state", "command", "note")  # facts that the page shows elsewhere
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


def _run(
    run: Run, link: Callable[[Path], str], window: int | None, lines: dict[str, int]
) -> dict[str, Any]:
    facts = run_facts(run, window)
    config = [lines.setdefault(line, len(lines)) for line in run.config.text.splitlines()]
    shown = {key: value for key, value in facts.items() if key not in _ELSEWHERE}
    is_recorded = run.record is not None
    return {
        "name": facts["run"],
        "state": facts["state"],
        # The keys of the filters; without a record they are unknown.
        "experiment": facts["experiment"] if is_recorded else "",
        "model": facts["model"] if is_recorded else "",
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
    return [path for path in files if path.is_file()]
