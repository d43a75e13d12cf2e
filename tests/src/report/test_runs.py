from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.report.runs import ReportError, count_corrupt, read_runs

MakeRun = Callable[..., Path]


def test_runs_are_found_at_any_depth_newest_first(outputs: Path, make_run: MakeRun) -> None:
    make_run("a/old", started_at="2025-11-01T00:00:00Z")
    make_run("deep/er/still/new", started_at="2025-11-03T00:00:00+00:00")
    make_run("mid", started_at="2025-11-02T00:00:00")
    assert [run.name for run in read_runs(outputs)] == ["deep/er/still/new", "mid", "a/old"]


def test_a_whole_run_has_no_problems(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    make_run(evaluation=evaluation)
    (run,) = read_runs(outputs)
    assert run.problems == ()
    assert run.state == "finished"
    assert run.perplexity is not None
    assert run.settings.rope.type == "linear"
    assert len(run.metrics.steps) == 4
    assert count_corrupt([run]) == 0


def test_checkpoints_and_exports_are_not_searched(outputs: Path, make_run: MakeRun) -> None:
    make_run("run")
    make_run("run/checkpoints/step-4")
    make_run("run/export-ard")
    make_run("run/exported")
    make_run("checkpoints/own-folder")
    names = {run.name for run in read_runs(outputs)}
    assert names == {"run", "run/exported", "checkpoints/own-folder"}


def test_a_run_outside_a_repository_is_whole(outputs: Path, make_run: MakeRun) -> None:
    make_run(git_commit=None, git_dirty=None)
    (run,) = read_runs(outputs)
    assert run.problems == ()


def test_a_run_that_has_just_begun_needs_no_metrics(outputs: Path, make_run: MakeRun) -> None:
    (make_run("none", state="running", step=0, metrics=[]) / "metrics.jsonl").unlink()
    make_run("empty", state="running", step=0, metrics=[])
    assert [run.problems for run in read_runs(outputs)] == [(), ()]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "run.json").write_text('{"schema":'), "run.json: Invalid JSON"),
        (lambda folder: (folder / "run.json").unlink(), "run.json is missing"),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda folder: (folder / "config.yaml").write_text("a: ["), "config.yaml: not YAML"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "metrics.jsonl is empty"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"st'), "line 1 is cut off"),
        (lambda folder: (folder / "evals/perplexity.json").write_text(""), "perplexity.json is em"),
        (lambda folder: (folder / "evals/perplexity.json").write_text("{}"), "perplexity.json: sc"),
    ],
    ids=[
        "record-cut",
        "record-missing",
        "config-missing",
        "config-syntax",
        "metrics-missing",
        "metrics-empty",
        "metrics-cut",
        "evaluation-empty",
        "evaluation-fields",
    ],
)
def test_a_damaged_run_is_listed_with_its_reason(
    outputs: Path,
    make_run: MakeRun,
    evaluation: dict[str, Any],
    damage: Callable[[Path], object],
    problem: str,
) -> None:
    damage(make_run(evaluation=evaluation))
    (run,) = read_runs(outputs)
    assert any(problem in text for text in run.problems)
    assert count_corrupt([run]) == 1
    assert run.state == ("corrupt" if problem.startswith("run.json") else "finished")


def test_a_folder_that_cannot_be_listed_is_told(
    outputs: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("open")
    closed = outputs / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    problems = {run.name: run.problems for run in read_runs(outputs)}
    assert problems == {
        "open": (),
        "closed": ("the folder cannot be read (Permission denied)",),
    }


def test_a_name_that_is_no_utf8_is_shown_replaced(outputs: Path, make_run: MakeRun) -> None:
    folder = make_run("plain")
    os.rename(os.fsencode(folder), os.fsencode(outputs) + b"/odd\xff")
    (run,) = read_runs(outputs)
    assert run.name == "odd\ufffd"
    assert run.problems == ()


def test_a_missing_output_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"outputs=.*nowhere: no such folder"):
        read_runs(tmp_path / "nowhere")
