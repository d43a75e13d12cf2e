from __future__ import annotations

import math
from typing import Any

import pytest

from src.report.charts import Chart
from src.report.figures.windows import perplexity_chart
from tests.src.report.synthetic import perplexity_results


def chart_of(evaluation: dict[str, Any]) -> Chart:
    return perplexity_chart(perplexity_results(evaluation))


def test_one_line_for_each_model_over_the_windows(evaluation: dict[str, Any]) -> None:
    chart = chart_of(evaluation)
    lines = {one.name: one for one in chart.series}
    assert list(lines) == ["native", "scaled", "after ard", "restored"]
    assert [p.x for p in lines["native"].points] == [128, 512, 2048]
    assert [p.y for p in lines["restored"].points] == [55.0, 38.1, 33.0]
    assert len({one.color for one in chart.series}) == 4
    assert chart.x.log


@pytest.mark.parametrize(("scaled", "log"), [(132.9, True), (40.0, False)])
def test_the_axis_is_logarithmic_for_wide_spans(
    evaluation: dict[str, Any], scaled: float, log: bool
) -> None:
    evaluation["models"] = [
        {"name": "native", "role": "native", "perplexity": {"512": 30.0}},
        {"name": "scaled", "role": "scaled", "perplexity": {"512": scaled}},
    ]
    y = chart_of(evaluation).y
    assert y.log is log
    if log:
        assert sum(30.0 <= at <= scaled for at, _ in y.ticks) >= 2


def test_broken_values_are_gaps(evaluation: dict[str, Any]) -> None:
    values = {"128": float("nan"), "512": None, "2048": float("inf")}
    evaluation["models"] = [{"name": "native", "role": "native", "perplexity": values}]
    assert all(math.isnan(p.y) for p in chart_of(evaluation).series[0].points)
