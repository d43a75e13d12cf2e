from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from src import results
from src.report.runs import read_runs
from src.report.table import comparison, gap_closed, headline_window, run_notes, run_row, runs_table
from src.results import PerplexityResults

MakeRun = Callable[..., Path]


def parsed(evaluation: dict[str, Any]) -> PerplexityResults:
    report = results.parse(json.dumps(evaluation), PerplexityResults)
    assert report is not None
    return report


def best_cells(report: PerplexityResults) -> set[tuple[str, int]]:
    table = comparison(report)
    return {
        (row.name, window)
        for row in table.models
        for window, cell in zip(table.windows, row.cells, strict=True)
        if cell.best
    }


def test_rows_are_models_and_columns_windows(evaluation: dict[str, Any]) -> None:
    evaluation["windows"] = [2048, 128, 512]
    table = comparison(parsed(evaluation))
    assert table.windows == (128, 512, 2048)
    assert [row.name for row in table.models] == ["native", "scaled", "after ard", "restored"]
    assert [cell.text for cell in table.models[1].cells] == ["101.3", "132.9", "171.0"]


def test_scores_are_shown_as_written_or_as_dashes(evaluation: dict[str, Any]) -> None:
    table = comparison(parsed(evaluation))
    assert [(row.name, row.cells) for row in table.scores] == [
        ("gap closed, restored", ("–", "95.4%", "–")),
        ("recovery, restored", ("–", "97.9%", "–")),
    ]


def test_every_scored_model_has_its_scores(evaluation: dict[str, Any]) -> None:
    evaluation["scores_by_model"] = {
        "after ard": {"512": {"gap_closed": 0.94, "gap_closed_nll": 0.9, "recovery": 84.8}},
        "restored": evaluation["scores"],
    }
    table = comparison(parsed(evaluation))
    assert [(row.name, row.cells[1]) for row in table.scores] == [
        ("gap closed, after ard", "94.0%"),
        ("recovery, after ard", "84.8%"),
        ("gap closed, restored", "95.4%"),
        ("recovery, restored", "97.9%"),
    ]


def test_without_scores_there_are_dashes(evaluation: dict[str, Any]) -> None:
    evaluation["scores"] = None
    table = comparison(parsed(evaluation))
    assert {cell for row in table.scores for cell in row.cells} == {"–"}


def test_the_best_student_is_marked_by_window(evaluation: dict[str, Any]) -> None:
    report = parsed(evaluation)
    assert best_cells(report) == {("after ard", 128), ("restored", 512), ("restored", 2048)}


def test_missing_and_broken_values_are_never_the_best(evaluation: dict[str, Any]) -> None:
    evaluation["models"][2]["perplexity"] = {"128": float("nan"), "512": 39.5}
    evaluation["models"][3]["perplexity"] = {"128": None, "512": float("inf")}
    assert best_cells(parsed(evaluation)) == {("after ard", 512)}


def test_without_a_student_nothing_is_best(evaluation: dict[str, Any]) -> None:
    evaluation["models"] = evaluation["models"][:2]
    assert best_cells(parsed(evaluation)) == set()


@pytest.mark.parametrize(
    ("headline", "wanted", "window"),
    [(512, None, 512), (None, None, 2048), (512, 128, 128), (512, 64, None), (64, None, None)],
    ids=["evaluation's", "largest", "asked", "asked-but-absent", "headline-but-absent"],
)
def test_headline_window(
    evaluation: dict[str, Any], headline: int | None, wanted: int | None, window: int | None
) -> None:
    report = parsed({**evaluation, "headline": headline})
    assert headline_window(report, wanted) == window


def test_run_row(outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]) -> None:
    make_run(evaluation=evaluation, state="failed", error="boom\nsecond line", git_dirty=True)
    (run,) = read_runs(outputs)
    row = run_row(run)
    assert (row.run, row.state, row.tokens) == ("quickstart/20251120-a1b2", "failed", "24,576")
    assert (row.rope, row.commit, row.gap_closed) == ("linear to 32,768", "3f9c2ab81d+", "95.4%")
    assert row.note == "error: boom second line"
    assert gap_closed(run, window=128) == "–"


def test_progress_is_the_latest_of_record_and_metrics(outputs: Path, make_run: MakeRun) -> None:
    rows = [{"step": 1, "tokens": 640, "stage": "ard", "loss/total": 1.0, "seconds": 90.0}]
    make_run("behind", state="running", tokens=0, step=0, seconds=0.0, metrics=rows)
    (run,) = read_runs(outputs)
    assert (run_row(run).tokens, run_row(run).duration) == ("640", "1 min 30 s")


def test_terminal_table_shows_markup_as_text(outputs: Path, make_run: MakeRun) -> None:
    make_run("[red]x[/red]", method="[bold]m")
    (make_run("[blink]y") / "run.json").write_text("{")
    runs = read_runs(outputs)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(runs_table(runs), *run_notes(runs), sep="\n")
    shown = console.export_text()
    assert "[red]x[/red]" in shown
    assert "[bold]m" in shown
    assert "[blink]y: corrupt: run.json: Invalid JSON" in shown
