from __future__ import annotations

import json

import pytest

from src.report import figures
from src.report.charts import Axis, Chart, Figure, Heatmap, Point, Series
from src.report.groups import Group, group_runs
from src.report.runs import Run, read_runs
from tests.src.report import synthetic


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    outputs = tmp_path_factory.mktemp("runs")
    synthetic.write(outputs, 200)
    return read_runs(outputs)


@pytest.fixture(scope="module")
def groups(runs: list[Run]) -> list[Group]:
    return group_runs(runs)


def first(figure: Figure) -> Chart:
    chart = figure.choices[0][1]
    assert isinstance(chart, Chart)
    return chart


def test_recovery_against_tokens_has_a_line_a_method(groups: list[Group]) -> None:
    figure = figures.budget_figure(groups)
    assert figure.choices[0][0] == ("llama2_7b, linear x8", "Recovery, short suite")
    chart = first(figure)
    assert chart.x.log
    assert [at for at, _ in chart.marks] == [4_456_448, 268_435_456]
    assert [one.name for one in chart.series] == [
        *("linearard", "longred_c", "longred_u", "cpt_long", "cpt_mix", "logit_kd")
    ]
    line = chart.series[0].drawn
    assert [point.x for point in line] == sorted({point.x for point in line})
    assert len(line) == 7
    assert all(point.low is not None and point.runs for point in line)


def test_the_ablation_of_weights_varies_nothing_else(groups: list[Group]) -> None:
    chart = first(figures.weights_figure(groups))
    assert chart.x.categories == ("Q", "K", "V", "Q+K", "Q+V", "K+V", "Q+K+V", "2Q+K+V")
    (series,) = chart.series  # another learning rate is another ablation
    assert len(series.drawn) == 8


def test_scaling_has_a_line_a_method_and_kind(groups: list[Group]) -> None:
    chart = first(figures.scaling_figure(groups))
    assert [text for _, text in chart.x.ticks] == ["2x", "4x", "8x", "16x"]
    assert [one.name for one in chart.series][:3] == [
        *("linearard, linear", "linearard, abf", "linearard, yarn")
    ]
    assert len({one.dash for one in chart.series}) == 3


def test_ruler_stands_beside_its_baselines(groups: list[Group]) -> None:
    figure = figures.ruler_figure(groups)
    chart = first(figure)
    assert [one.name for one in chart.series][-2:] == ["native", "scaled"]
    budgets = [labels[1] for labels, _ in figure.choices if labels[0] == "llama2_7b, linear x8"]
    assert budgets[0] == "each method at its most tokens"
    assert "all at 4.25M tokens" in budgets


def test_needles_and_layers_are_maps(runs: list[Run], groups: list[Group]) -> None:
    needles = figures.needle_figure(groups).choices[0][1]
    assert isinstance(needles, Heatmap)
    assert needles.columns == ("4K", "8K", "16K", "32K")
    assert needles.rows == ("0", "20", "40", "60", "80", "100")
    layers = figures.layers_figure(runs).choices[0][1]
    assert isinstance(layers, Heatmap)
    assert len(layers.rows) == 32
    assert len(layers.columns) <= 48
    drift = figures.drift_figure(runs).choices[0][1]
    assert isinstance(drift, Chart)
    assert [one.name for one in drift.series][:3] == ["scaled, qq", "scaled, kk", "scaled, vv"]


def test_no_runs_no_charts() -> None:
    assert figures.budget_figure([]).choices == ()
    assert figures.weights_figure([]).choices == ()
    assert figures.scaling_figure([]).choices == ()
    assert figures.ruler_figure([]).choices == ()
    assert figures.needle_figure([]).choices == ()
    assert figures.layers_figure([]).choices == ()
    assert figures.drift_figure([]).choices == ()


def test_figures_are_strict_json(runs: list[Run], groups: list[Group]) -> None:
    for figure in (figures.budget_figure(groups), figures.layers_figure(runs)):
        json.dumps(figure.data(), allow_nan=False)


def test_a_chart_as_csv_guards_against_formulas() -> None:
    series = Series("=1+1", (Point(1, 2.5, note="a,b"),))
    chart = Chart("t", Axis("x"), Axis("y"), (series,))
    assert chart.csv() == 'series,x,y,low,high,note\n\'=1+1,1,2.5,,,"a,b"\n'
