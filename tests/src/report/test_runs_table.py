from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from src.report.groups import ReportData, gap_closed
from src.report.runs import read_runs
from src.report.runs_table import page_data, run_facts, run_files, run_notes, runs_table
from src.report.tables import terminal

MakeRun = Callable[..., Path]


def test_run_facts(outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]) -> None:
    make_run(evaluation=evaluation, state="failed", error="boom\nsecond line", git_dirty=True)
    (run,) = read_runs(outputs)
    row = run_facts(run)
    assert (row["run"], row["state"], row["tokens"]) == (
        "quickstart/20251120-a1b2",
        "failed",
        "24,576",
    )
    assert (row["scaling"], row["commit"], row["gap closed"]) == (
        "linear to 32K",
        "3f9c2ab81d+",
        "95.4%",
    )
    assert row["note"] == "error: boom second line"
    assert gap_closed(run, window=128) is None


def test_progress_is_the_latest_of_record_and_metrics(outputs: Path, make_run: MakeRun) -> None:
    rows = [{"step": 1, "tokens": 640, "stage": "ard", "loss/total": 1.0, "seconds": 90.0}]
    make_run("behind", state="running", tokens=0, step=0, seconds=0.0, metrics=rows)
    (run,) = read_runs(outputs)
    assert (run_facts(run)["tokens"], run_facts(run)["duration"]) == ("640", "1 min 30 s")


def test_terminal_table_shows_markup_as_text(outputs: Path, make_run: MakeRun) -> None:
    make_run("[red]x[/red]", method="[bold]m")
    (make_run("[blink]y") / "run.json").write_text("{")
    runs = read_runs(outputs)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(runs_table(runs)), *run_notes(runs), sep="\n")
    shown = console.export_text()
    assert "[red]x[/red]" in shown
    assert "[bold]m" in shown
    assert "[blink]y: corrupt: run.json: Invalid JSON" in shown


def test_a_run_has_its_command_config_and_files(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    sweep = {"name": "seeds", "job": 3, "hash": "x"}
    folder = make_run(evaluation=evaluation, sweep=sweep, world_size=2)
    data = page_data(ReportData(runs=tuple(read_runs(outputs))), str)
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
    data = page_data(ReportData(runs=tuple(read_runs(outputs))), str)
    assert len(data["lines"]) == len(set(data["lines"]))
    assert data["runs"][0]["config"] == data["runs"][1]["config"]


def test_a_run_without_a_record_passes_no_filter(outputs: Path, make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "run.json").write_text("{")
    (run,) = page_data(ReportData(runs=tuple(read_runs(outputs))), str)["runs"]
    assert (run["experiment"], run["model"], run["sweep"]) == ("", "", "")
    assert "corrupt: run.json" in run["note"]


def test_only_files_of_a_run_are_listed(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "secret.txt").write_text("x")
    (folder / "evals").mkdir()
    (folder / "evals" / "short.items.jsonl").write_text("x")
    assert [path.name for path in run_files(folder)] == ["config.yaml", "run.json", "metrics.jsonl"]
