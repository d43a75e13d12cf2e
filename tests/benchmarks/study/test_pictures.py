"""Pictures show the best run of each cell, and nothing where none was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import pictures
from src.report.charts import Chart, Heatmap
from tests.benchmarks.study.test_phases import RATE, grid, played, score


def rows_and_pictures() -> tuple[list[dict[str, Any]], dict[str, pictures.Picture]]:
    rows = [
        row | {"tokens": {"1M": 1, "4M": 4}.get(row["budget"], 0)} for row in played(grid(), score)
    ]
    return rows, dict(pictures.made(grid(), rows))


def test_the_best_run_at_each_budget_is_a_point() -> None:
    _, drawn = rows_and_pictures()
    chart, title = drawn["study_m_tokens"]
    assert isinstance(chart, Chart)
    assert "yarn" in title
    assert [[point.x for point in one.points] for one in chart.series] == [[1, 4], [1, 4]]
    one, four = (point.y for point in chart.series[0].points)
    assert four > one, "more tokens are better for the first method"
    assert chart.level is not None


def test_the_search_is_shown_by_the_rate_of_the_last_stage() -> None:
    rows, drawn = rows_and_pictures()
    chart, _ = drawn["study_m_rates"]
    assert isinstance(chart, Chart)
    searched = [row for row in rows if (row["phase"], row["method"]) == ("search", "a")]
    assert [point.x for point in chart.series[0].points] == sorted(
        {row["params"][RATE] for row in searched if row["scaling"] == "yarn"}
    )
    for row in rows:
        if row["phase"] == "whole":
            row["params"] = {RATE: 0.5}
        if row["phase"] == "search":
            row["params"] = {"recipe.stages.a.lr": 1.0, **row["params"], "recipe.stages.x.w": 2.0}
    assert dict(pictures.made(grid(), rows))["study_m_rates"][0] == chart


def test_one_budget_is_no_line() -> None:
    rows, _ = rows_and_pictures()
    names = dict(pictures.made(grid(), [row for row in rows if row["budget"] != "4M"]))
    assert set(names) == {"study_m_rates", "study_m_scalings"}


def test_cells_that_were_not_run_are_blank() -> None:
    _, drawn = rows_and_pictures()
    heat, _ = drawn["study_m_scalings"]
    assert isinstance(heat, Heatmap)
    assert set(heat.columns) == {"linear", "yarn"}
    by_label = dict(zip(heat.rows, heat.values, strict=True))
    assert None not in by_label["untrained"]
    assert heat.text


def test_without_trained_runs_nothing_is_drawn(tmp_path: Path) -> None:
    rows = [row for row in played(grid(), score) if row["phase"] == "untrained"]
    pictures.draw(grid(), rows, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverged_has_no_point() -> None:
    rows, _ = rows_and_pictures()
    for row in rows:
        if row["phase"] == "whole" or row["params"].get(RATE) == pytest.approx(3e-4):
            row["validation"] = None
    chart, _ = dict(pictures.made(grid(), rows))["study_m_tokens"]
    assert isinstance(chart, Chart)
    assert all(point.x == 1 for one in chart.series for point in one.points)
