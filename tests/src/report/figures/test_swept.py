from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.report.charts import Chart
from src.report.figures.swept import FIGURES
from src.report.groups import ReportData
from src.report.runs import read_runs
from tests.src.report import synthetic
from tests.src.report.synthetic import Job


def charts_of(outputs: Path, *settings: Mapping[str, Any]) -> dict[str, Chart]:
    """The first chart of each figure, for runs whose first stage has these settings."""
    for number, changed in enumerate(settings):
        folder = outputs / f"run-{number}"
        synthetic.write_run(folder, Job(), number)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        stage = config["recipe"]["stages"]["ard"]
        stage["parameters"] |= {k: v for k, v in changed.items() if k in ("rank", "alpha")}
        stage |= {k: v for k, v in changed.items() if k == "lr"}
        config["objective"]["terms"]["relation"] |= {
            k: v for k, v in changed.items() if k == "layers"
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    data = ReportData(runs=tuple(read_runs(outputs)))
    found = {}
    for figure, choices in FIGURES[0].drawn(data):
        for _, chart in choices[:1]:
            assert isinstance(chart, Chart)
            found[figure.title.removeprefix("What changes with ")] = chart
    return found


def test_a_setting_that_follows_another_has_no_figure_of_its_own(outputs: Path) -> None:
    ranks = [{"rank": rank, "alpha": 2 * rank} for rank in (8, 64, 512)]
    charts = charts_of(outputs, *ranks)
    assert list(charts) == ["parameters.rank"]
    assert [text for _, text in charts["parameters.rank"].x.ticks] == ["8", "64", "512"]


@pytest.mark.parametrize("layers", [["all", "last"], ["all", [0, 2, 4]]], ids=["names", "list"])
def test_settings_that_are_no_numbers_are_categories(outputs: Path, layers: list[Any]) -> None:
    charts = charts_of(outputs, *({"layers": value} for value in layers))
    axis = charts["relation.layers"].x
    assert set(axis.categories) == set(map(str, layers))


def test_a_grid_has_a_figure_for_each_axis(outputs: Path) -> None:
    grid = [{"lr": lr, "layers": at} for lr, at in product((1e-4, 1e-3), ("all", "last"))]
    charts = charts_of(outputs, *grid)
    assert sorted(charts) == ["ard.lr", "relation.layers"]
    assert [len(chart.series) for chart in charts.values()] == [2, 2]
    names = {one.name for one in charts["ard.lr"].series}
    assert len(names) == 2  # told apart by the other axis


def test_runs_that_are_alike_have_no_figure(outputs: Path) -> None:
    assert charts_of(outputs, {}, {}) == {}
