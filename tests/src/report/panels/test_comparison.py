from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.report.noise import Mark
from src.report.panels import PageContext
from src.report.panels.comparison import comparison_panel, perplexity_table
from src.report.runs import read_runs
from src.report.tables import Table
from src.results import PerplexityResults
from tests.src.report.synthetic import perplexity_results

MakeRun = Callable[..., Path]


def context(outputs: Path) -> PageContext:
    return PageContext(
        runs=tuple(read_runs(outputs)), target=outputs / "index.html", now=datetime.now(UTC)
    )


def test_a_block_for_each_evaluated_run_the_newest_open(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    for day in range(1, 6):
        make_run(f"run-{day}", started_at=f"2025-11-0{day}T00:00:00Z", evaluation=evaluation)
    make_run("plain")
    panel = comparison_panel(context(outputs))
    assert panel is not None
    blocks = panel.values["blocks"]
    assert [block["name"] for block in blocks] == ["run-5", "run-4", "run-3", "run-2", "run-1"]
    assert [block["is_open"] for block in blocks] == [True, True, True, False, False]
    assert {block["gap_closed"] for block in blocks} == {"95.4%"}


def test_no_evaluation_no_panel(outputs: Path, make_run: MakeRun) -> None:
    make_run()
    assert comparison_panel(context(outputs)) is None


def best_cells(report: PerplexityResults) -> set[tuple[str, str]]:
    table = perplexity_table(report)
    return {
        (row.cells[0].text, column.title)
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.mark is Mark.BEST
    }


def scores(table: Table) -> list[list[str]]:
    """Name and texts of each row below the models."""
    return [[cell.text for cell in row.cells] for row in table.sections[1].rows]


def test_rows_are_models_and_columns_windows(evaluation: dict[str, Any]) -> None:
    evaluation["windows"] = [2048, 128, 512]
    table = perplexity_table(perplexity_results(evaluation))
    assert [column.title for column in table.columns] == ["model", "128", "512", "2,048"]
    models = [[cell.text for cell in row.cells] for row in table.sections[0].rows]
    assert [name for name, *_ in models] == ["native", "scaled", "after ard", "restored"]
    assert models[1][1:] == ["101.3", "132.9", "171.0"]


def test_scores_are_shown_as_written_or_as_dashes(evaluation: dict[str, Any]) -> None:
    table = perplexity_table(perplexity_results(evaluation))
    assert scores(table) == [
        ["gap closed, restored", "–", "95.4%", "–"],
        ["recovery, restored", "–", "97.9%", "–"],
    ]


def test_every_scored_model_has_its_scores(evaluation: dict[str, Any]) -> None:
    scores_of_ard = {"512": {"gap_closed": 0.94, "gap_closed_nll": 0.9, "recovery": 84.8}}
    evaluation["models"][2]["scores"] = scores_of_ard
    table = perplexity_table(perplexity_results(evaluation))
    assert [(name, at_512) for name, _, at_512, _ in scores(table)] == [
        ("gap closed, after ard", "94.0%"),
        ("recovery, after ard", "84.8%"),
        ("gap closed, restored", "95.4%"),
        ("recovery, restored", "97.9%"),
    ]


def test_without_scores_there_are_dashes(evaluation: dict[str, Any]) -> None:
    del evaluation["models"][3]["scores"]
    table = perplexity_table(perplexity_results(evaluation))
    assert {text for _, *texts in scores(table) for text in texts} == {"–"}


def test_the_best_student_is_marked_by_window(evaluation: dict[str, Any]) -> None:
    report = perplexity_results(evaluation)
    assert best_cells(report) == {
        *(("after ard", "128"), ("restored", "512"), ("restored", "2,048"))
    }


def test_missing_and_broken_values_are_never_the_best(evaluation: dict[str, Any]) -> None:
    evaluation["models"][2]["perplexity"] = {"128": float("nan"), "512": 39.5}
    evaluation["models"][3]["perplexity"] = {"128": None, "512": float("inf")}
    assert best_cells(perplexity_results(evaluation)) == set()  # nothing is left to compare with


def test_without_a_student_nothing_is_best(evaluation: dict[str, Any]) -> None:
    evaluation["models"] = evaluation["models"][:2]
    assert best_cells(perplexity_results(evaluation)) == set()
