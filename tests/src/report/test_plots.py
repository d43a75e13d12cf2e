from __future__ import annotations

import json
from typing import Any

import pytest

from src import results
from src.report.metrics import Metrics
from src.report.plots import curve_data, perplexity_figure
from src.results import PerplexityResults


def parsed(evaluation: dict[str, Any]) -> PerplexityResults:
    report = results.parse(json.dumps(evaluation), PerplexityResults)
    assert report is not None
    return report


def figure_dict(evaluation: dict[str, Any], **options: Any) -> dict[str, Any]:
    return perplexity_figure(parsed(evaluation), **options).to_plotly_json()


def test_one_line_a_model_over_the_windows(evaluation: dict[str, Any]) -> None:
    figure = figure_dict(evaluation)
    lines = {trace["name"]: trace for trace in figure["data"]}
    assert list(lines) == ["native", "scaled", "after ard", "restored"]
    assert list(lines["native"]["x"]) == [128, 512, 2048]
    assert list(lines["restored"]["y"]) == [55.0, 38.1, 33.0]
    assert len({trace["line"]["color"] for trace in figure["data"]}) == 4
    assert figure["layout"]["xaxis"]["type"] == "log"


@pytest.mark.parametrize(("scaled", "axis"), [(132.9, "log"), (40.0, "linear")])
def test_the_axis_is_logarithmic_for_wide_spans(
    evaluation: dict[str, Any], scaled: float, axis: str
) -> None:
    evaluation["models"] = [
        {"name": "native", "perplexity": {"512": 30.0}},
        {"name": "scaled", "perplexity": {"512": scaled}},
    ]
    layout = figure_dict(evaluation)["layout"]
    assert layout["yaxis"]["type"] == axis
    if axis == "log":
        assert sum(30.0 <= tick <= scaled for tick in layout["yaxis"]["tickvals"]) >= 2


def test_broken_values_are_gaps(evaluation: dict[str, Any]) -> None:
    values = {"128": float("nan"), "512": None, "2048": float("inf")}
    evaluation["models"] = [{"name": "native", "perplexity": values}]
    assert list(figure_dict(evaluation)["data"][0]["y"]) == [None, None, None]


def test_names_are_escaped_for_plotly(evaluation: dict[str, Any]) -> None:
    evaluation["models"][3]["name"] = '<a href="https://example.org">x</a>'
    figure = figure_dict(evaluation, title="<b>t</b>")
    assert figure["data"][3]["name"].startswith("&lt;a href=")
    assert figure["layout"]["title"]["text"] == "&lt;b&gt;t&lt;/b&gt;"


def metrics(stages: list[tuple[str, int]]) -> Metrics:
    names = [name for name, count in stages for _ in range(count)]
    steps = tuple(range(1, len(names) + 1))
    return Metrics(
        steps=steps,
        tokens=tuple(512 * step for step in steps),
        stages=tuple(names),
        series={"lr": tuple(step / 3 for step in steps), "x": (None,) * len(names)},
    )


def test_short_curves_are_whole() -> None:
    data = curve_data(metrics([("ard", 3), ("cpt", 2)]))
    assert data["tokens"] == [512, 1024, 1536, 2048, 2560]
    assert data["stages"] == [("ard", 3), ("cpt", 2)]
    assert data["series"]["lr"][0] == 0.333333
    assert data["series"]["x"] == [None] * 5
    assert data["every"] == 1


def test_long_curves_are_thinned_but_keep_the_ends_of_stages() -> None:
    data = curve_data(metrics([("ard", 1001), ("cpt", 2003)]), max_points=100)
    assert data["every"] == 31
    assert 100 * 0.9 <= len(data["tokens"]) <= 110
    kept = {tokens // 512 for tokens in data["tokens"]}
    assert {1, 1001, 1002, 3004} <= kept
    assert sum(count for _, count in data["stages"]) == len(data["tokens"])
    assert all(len(column) == len(data["tokens"]) for column in data["series"].values())


def test_no_metrics() -> None:
    assert curve_data(Metrics()) == {"tokens": [], "stages": [], "series": {}, "every": 1}
