from __future__ import annotations

import pytest

from src.report.charts import Chart, Heatmap
from src.report.figures import FIGURES
from src.report.figures.base import Choice, Figure
from src.report.figures.layers import layer_map
from src.report.groups import ReportData
from src.report.metrics import Metrics
from src.report.runs import read_runs
from tests.src.report import synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    outputs = tmp_path_factory.mktemp("runs")
    synthetic.write(outputs, 200)
    return ReportData(runs=tuple(read_runs(outputs)))


def choices(name: str, data: ReportData) -> list[Choice]:
    (figure,) = [figure for figure in FIGURES if figure.name == name]
    return list(figure.choices(data))


def first(name: str, data: ReportData) -> Chart:
    chart = choices(name, data)[0][1]
    assert isinstance(chart, Chart)
    return chart


def test_recovery_against_tokens_has_a_line_a_method(data: ReportData) -> None:
    labels, chart = choices("budget", data)[0]
    assert labels == ("llama2_7b to 32K", "Recovery, short suite")
    assert isinstance(chart, Chart)
    assert chart.x.log
    assert [at for at, _ in chart.marks] == [4_456_448, 268_435_456]
    assert [one.name for one in chart.series] == [
        *("LinearARD, linear x8", "LinearARD, ABF x8", "LinearARD, YaRN x8"),
        *("LongReD-C, linear x8", "LongReD-U, linear x8"),
        *("Long-CPT, linear x8", "Long-CPT, ABF x8", "Long-CPT, YaRN x8"),
        *("Mix-CPT, linear x8", "Logit KD, linear x8"),
    ]
    line = chart.series[0].drawn
    assert [point.x for point in line] == sorted({point.x for point in line})
    assert len(line) == 7
    assert all(point.low is not None and point.runs for point in line)


def test_the_ablation_of_weights_varies_nothing_else(data: ReportData) -> None:
    chart = first("weights", data)
    assert chart.x.categories == ("Q", "K", "V", "Q+K", "Q+V", "K+V", "Q+K+V", "2Q+K+V")
    (series,) = chart.series  # another learning rate is another ablation
    assert len(series.drawn) == 8


def test_every_swept_setting_has_a_figure(data: ReportData) -> None:
    (figure,) = [figure for figure in FIGURES if figure.name == "setting"]
    drawn = {one.title: charts for one, charts in figure.drawn(data)}
    assert list(drawn) == ["What changes with ard.lr", "What changes with seed"]
    labels, rates = drawn["What changes with ard.lr"][0]
    assert labels == ("llama2_7b to 32K", "Recovery, short suite")
    assert isinstance(rates, Chart)
    assert rates.x.log
    assert [text for _, text in rates.x.ticks] == ["1e-05", "2e-05", "0.0001", "0.0002", "0.001"]
    (line,) = rates.series
    assert [point.x for point in line.drawn] == [1e-5, 2e-5, 1e-4, 2e-4, 1e-3]
    _, seeds = drawn["What changes with seed"][0]
    assert isinstance(seeds, Chart)
    assert seeds.x.categories == ("0", "1", "2", "3", "4")
    assert all(len(point.runs) == 1 for one in seeds.series for point in one.points)


def test_scaling_has_a_line_a_method_and_kind(data: ReportData) -> None:
    chart = first("scaling", data)
    assert [text for _, text in chart.x.ticks] == ["2x", "4x", "8x", "16x"]
    assert [one.name for one in chart.series][:3] == [
        *("LinearARD, linear", "LinearARD, ABF", "LinearARD, YaRN")
    ]
    assert len({one.dash for one in chart.series}) == 3


def test_ruler_stands_beside_its_baselines(data: ReportData) -> None:
    chart = first("ruler", data)
    assert [one.name for one in chart.series][-4:] == [
        *("native model", "linear x8, untrained", "ABF x8, untrained", "YaRN x8, untrained")
    ]
    budgets = [labels[1] for labels, _ in choices("ruler", data) if labels[0] == "llama2_7b to 32K"]
    assert budgets[0] == "each method at its most tokens"
    assert "all at 4.25M tokens" in budgets


def test_needles_and_layers_are_maps(data: ReportData) -> None:
    needles = choices("needles", data)[0][1]
    assert isinstance(needles, Heatmap)
    assert needles.columns == ("4K", "8K", "16K", "32K")
    assert needles.rows == ("0", "20", "40", "60", "80", "100")
    layers = choices("layers", data)[0][1]
    assert isinstance(layers, Heatmap)
    assert len(layers.rows) == 32
    assert len(layers.columns) <= 24
    drift = first("drift", data)
    assert [one.name for one in drift.series][:3] == ["scaled, qq", "scaled, kk", "scaled, vv"]


def test_columns_of_a_map_are_distinct_where_tokens_look_alike() -> None:
    steps = (1, 2, 3)
    metrics = Metrics(steps, (100_100, 100_200, 200_000), ("s",) * 3, layers={"k": ((1.0,),) * 3})
    chart = layer_map(metrics, "k")
    assert chart is not None
    assert chart.columns == ("100k", "100k #2", "200k")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_without_data_a_figure_has_no_charts_but_a_hint(figure: Figure) -> None:
    assert list(figure.choices(ReportData(runs=()))) == []
    assert figure.hint.endswith(":")
    assert figure.command.startswith("python -m ")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_chart_has_one_label_for_each_choice(figure: Figure, data: ReportData) -> None:
    labels = [labels for labels, _ in figure.choices(data)]
    assert {len(label) for label in labels} <= {len(figure.chosen_by)}
