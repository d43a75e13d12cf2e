from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.report.drawer import page_data, run_files
from src.report.runs import read_runs

MakeRun = Callable[..., Path]


def test_a_run_has_its_command_config_and_files(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    sweep = {"name": "seeds", "job": 3, "hash": "x"}
    folder = make_run(evaluation=evaluation, sweep=sweep, world_size=2)
    data = page_data(read_runs(outputs), str, None)
    (run,) = data["runs"]
    assert run["command"] == "python -m src.train +experiment=quickstart"
    lines = [data["lines"][index] for index in run["config"]]
    assert lines == (folder / "config.yaml").read_text().splitlines()
    assert [name for name, _ in run["files"]] == [
        *("config.yaml", "run.json", "metrics.jsonl", "perplexity.json")
    ]
    facts = dict(run["facts"])
    assert facts["sweep"] == "seeds, job 3"
    assert facts["device"] == "cpu x2"
    assert (run["experiment"], run["sweep"]) == ("quickstart", "seeds")


def test_lines_that_configs_share_are_stored_once(outputs: Path, make_run: MakeRun) -> None:
    make_run("a")
    make_run("b")
    data = page_data(read_runs(outputs), str, None)
    assert len(data["lines"]) == len(set(data["lines"]))
    assert data["runs"][0]["config"] == data["runs"][1]["config"]


def test_a_run_without_a_record_passes_no_filter(outputs: Path, make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "run.json").write_text("{")
    (run,) = page_data(read_runs(outputs), str, None)["runs"]
    assert (run["experiment"], run["model"], run["sweep"]) == ("", "", "")
    assert "corrupt: run.json" in run["note"]


def test_only_files_of_a_run_are_listed(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "secret.txt").write_text("x")
    (folder / "evals").mkdir()
    (folder / "evals" / "short.items.jsonl").write_text("x")
    assert [path.name for path in run_files(folder)] == ["config.yaml", "run.json", "metrics.jsonl"]
