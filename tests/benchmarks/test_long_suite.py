"""Rows are the suite's figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import long_suite
from src.evals.suite import Evaluation
from src.evals.suites.positions import PositionBins, PositionsModel, PositionsResults, TextScore
from src.results import (
    Intervals,
    Mean,
    NeedleCell,
    NeedleDepthResults,
    NeedleModel,
    PapersResults,
    RulerResults,
    Score,
    StudentScores,
    SuiteResults,
    TaskModel,
    TaskResult,
)


def test_rows_name_task_length_model_and_error() -> None:
    identity: dict[str, Any] = {"name": "after ard", "role": "final"}
    score = Score(recovery=80.0, interval=Intervals(recovery=(70.0, 90.0)))
    records: list[SuiteResults[Any]] = [
        RulerResults(
            models=(
                TaskModel(
                    **identity,
                    results={
                        "ruler_niah_single_1_4096": TaskResult(
                            value=0.5, stderr=0.05, n=10, length=4096
                        )
                    },
                    by_length={4096: Mean(value=0.5, stderr=0.05)},
                ),
            )
        ),
        PapersResults(
            models=(
                TaskModel(
                    **identity,
                    results={
                        "qasper_yesno": TaskResult(
                            value=0.7, stderr=0.02, n=319, chance=0.674, truncated=3
                        )
                    },
                    scores=StudentScores(tasks={"qasper_yesno": score}),
                ),
            )
        ),
        PositionsResults(
            models=(
                PositionsModel(
                    **identity,
                    by_position=PositionBins(edges=(1, 64), perplexity=(90.0, 30.0)),
                    last_k={4096: TextScore(nll=3.0, perplexity=20.0, tokens=256)},
                ),
            )
        ),
        NeedleDepthResults(
            models=(
                NeedleModel(
                    **identity,
                    cells=(NeedleCell(length=4096, depth=50.0, value=0.9, stderr=0.1, n=10),),
                ),
            )
        ),
    ]
    rows = [row for record in records for row in long_suite.long_rows(record)]
    found = {row["name"]: row for row in rows}
    assert [r for r in rows if r["name"] == "ruler"] == [
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
    assert found["qasper_yesno"]["truncated"] == 3
    assert found["perplexity_last_k"]["value"] == 20.0
    assert [r["from"] for r in rows if r["name"] == "perplexity_at"] == [1, 64]
    assert found["needle_depth"]["value"] == 90.0
    assert found["recovery"]["interval"] == [70.0, 90.0]
    assert "gap_closed" not in found


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


def test_times_are_kept_for_the_same_code_device_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = argparse.Namespace(
        out=tmp_path / "long.json", commit="a", lengths=[4096], samples=5, limit=None
    )
    timed: list[bool] = []

    class Ruler:
        def problems(self, whole: Evaluation) -> list[str]:
            assert [c.name for c in whole.candidates] == ["native"], "the others have its shape"
            timed.append(True)
            return ["enough"]

    monkeypatch.setattr(long_suite, "ruler_of", lambda options: Ruler())
    given.run, given.work = None, tmp_path
    whole = long_suite.evaluation(given)

    def asked() -> list[dict[str, Any]] | None:
        known = long_suite.measured_before(given.out, given.commit)
        try:
            return long_suite.timed_rows(given, whole, known)
        except SystemExit:
            return None

    assert asked() is None
    about = {"lengths": [4096], "samples": 5, "limit": None, "model": "native", "unit": "s"}
    rows = [
        {"name": "ruler_seconds", "value": 9.0, **about},
        {"name": "samples_seconds", "value": 1.0, **about},
        {"name": "drift_x", "value": 2.0, "unit": "", "model": "native"},
    ]
    long_suite.write(given, rows)
    assert asked() == rows[:2]
    given.limit = 2
    assert asked() is None
    given.limit, given.commit = None, "b"
    assert asked() is None
    assert len(timed) == 3


def test_code_without_a_known_commit_is_not_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.merging.git_state", lambda root: {"git_commit": None})
    given = argparse.Namespace(
        out=tmp_path / "long.json", commit=None, lengths=[4096], samples=5, limit=None, run=None
    )
    long_suite.write(given, [{"name": "ruler_seconds", "value": 9.0}])
    assert long_suite.measured_before(given.out, given.commit) == []
    monkeypatch.setattr("benchmarks.merging.git_state", lambda root: {"git_commit": "a"})
    long_suite.write(given, [{"name": "ruler_seconds", "value": 9.0}])
    assert len(long_suite.measured_before(given.out, given.commit)) == 1
