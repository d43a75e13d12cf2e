"""Rows are the suites' figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import long_suite, short_suite
from src.results import Mean, PapersResults, RulerResults, SuiteResults, TaskModel, TaskResult

IDENTITY: dict[str, Any] = {"name": "after ard", "role": "final"}
RULER = RulerResults(
    models=(
        TaskModel(
            **IDENTITY,
            results={
                "ruler_niah_single_1_4096": TaskResult(value=0.5, stderr=0.05, n=10, length=4096)
            },
            by_length={4096: Mean(value=0.5, stderr=0.05)},
        ),
    )
)
PAPERS = PapersResults(
    models=(
        TaskModel(
            **IDENTITY,
            results={
                "qasper_yesno": TaskResult(value=0.7, stderr=0.02, n=319, chance=0.674, truncated=3)
            },
        ),
    )
)


def test_rows_name_task_length_model_and_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*arguments: str) -> int:
        commands.append(arguments)
        record: SuiteResults[Any] = RULER if "eval=ruler" in arguments else PAPERS
        file = tmp_path / "evals" / f"{record.suite}.limit_9.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(record.plain()))
        return 0

    monkeypatch.setattr(short_suite, "run", run)
    out = tmp_path / "long.json"
    typed = ["--run", str(tmp_path), "--out", str(out), "--commit", "a", "--limit", "9"]
    monkeypatch.setattr("sys.argv", ["long_suite", *typed, "--samples", "20"])
    long_suite.main()
    assert commands == [
        (
            *("src.evaluate", "eval=ruler", f"run={tmp_path}", "limit=9"),
            *("eval.ruler.lengths=[4096,8192]", "eval.ruler.samples=20"),
        ),
        ("src.evaluate", "eval=papers", f"run={tmp_path}", "limit=9"),
    ]
    written = json.loads(out.read_text())
    assert (written["commit"], written["limit"]) == ("a", 9)
    *ruler, papers = written["rows"]
    assert ruler == [
        {
            "name": "ruler",
            "value": 50.0,
            "unit": "0 to 100",
            "stderr": 5.0,
            "model": "after ard",
            "task": task,
            "length": 4096,
        }
        for task in ("niah_single_1", "mean")
    ]
    assert (papers["name"], papers["value"], papers["truncated"]) == ("qasper_yesno", 0.7, 3)


def test_the_table_has_a_line_a_model_and_a_column_a_length() -> None:
    def mean(model: str, length: int, value: float) -> dict:
        about = {"task": "mean", "model": model, "length": length, "stderr": 1.25}
        return {"name": "ruler", "value": value, **about}

    rows = [
        mean("native", 4096, 61.04),
        mean("native", 8192, 50.0),
        mean("after cpt", 4096, 55.5),
        {"name": "qasper_yesno", "value": 0.675, "stderr": 0.026, "model": "native"},
        {"name": "ruler_seconds", "value": 9.0, "model": "native"},
    ]
    lines = long_suite.table({"rows": rows, "limit": None}).splitlines()
    assert lines == [
        "| model | RULER 4,096 | RULER 8,192 | qasper_yesno |",
        "|---|---:|---:|---:|",
        "| native | 61.0 ± 1.2 | 50.0 ± 1.2 | 67.5 ± 2.6 |",
        "| after cpt | 55.5 ± 1.2 | - | - |",
    ]
    limited = long_suite.table({"rows": rows, "limit": 5}).splitlines()
    assert limited[: len(lines)] == lines
    assert "A quick look: at most 5 samples" in limited[-1]
    unknown = long_suite.ruler_row(Mean(value=0.5), {"task": "mean"})
    rows = [unknown | {"model": "native", "length": 4096}]
    assert long_suite.table({"rows": rows, "limit": 5}).splitlines()[2] == (
        "| native | 50.0 ± ? | - |"
    )
