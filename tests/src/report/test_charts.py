from __future__ import annotations

from typing import Literal

import pytest

from src.report.charts import (
    Axis,
    Chart,
    Heatmap,
    Point,
    Series,
    binary_tokens,
    log_ticks,
    method_slots,
    short_number,
    token_ticks,
)


def test_of_alternatives_the_first_at_each_x_is_drawn() -> None:
    points = (Point(1, 5.0), Point(1, 6.0), Point(2, 7.0))
    assert [p.y for p in Series("s", points, alternatives=True).drawn] == [5.0, 7.0]
    assert Series("s", points).drawn == points


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (4_456_448, "4.25M"),
        (268_435_456, "256M"),
        (524_288, "0.5M"),
        (24_576, "24K"),
        (25_000, "25k"),
        (5_000_000, "5M"),
    ],
)
def test_budgets_are_multiples_of_two_to_the_twenty(tokens: int, shown: str) -> None:
    assert binary_tokens(tokens) == shown


@pytest.mark.parametrize(("value", "shown"), [(950, "950"), (1500, "1.5k"), (2e9, "2G")])
def test_short_numbers(value: float, shown: str) -> None:
    assert short_number(value) == shown


def test_ticks_are_the_budgets_that_have_room() -> None:
    assert token_ticks([2**22, 2**14]) == ((2**14, "16K"), (2**22, "4M"))
    assert token_ticks([]) == ()
    crowded = token_ticks([float(2**power) for power in range(14, 31)])
    assert len(crowded) <= 10
    assert crowded[-1] == (2**30, "1024M")


@pytest.mark.parametrize("values", [(5.2, 5.6), (100, 101), (2.3, 2.9), (3e-4, 4e-4), (7.0, 7.0)])
def test_a_logarithmic_axis_has_ticks_within_a_narrow_span(values: tuple[float, float]) -> None:
    low, high = values
    ticks = [at for at, _ in log_ticks(values)]
    assert sum(low <= at <= high for at in ticks) >= 2 or low == high
    assert min(ticks) <= low <= high <= max(ticks)


def test_a_method_keeps_its_colour_whichever_others_there_are() -> None:
    assert method_slots(["cpt_long"])["cpt_long"] == method_slots(["own", "linearard"])["cpt_long"]
    assert method_slots(["b", "a"])["a"] < method_slots(["b", "a"])["b"]


def test_a_chart_as_csv_guards_against_formulas() -> None:
    series = Series("=1+1", (Point(1, 2.5, note="a,b"),))
    chart = Chart(Axis("x"), Axis("y"), (series,))
    assert chart.csv() == 'series,x,y,low,high,note\n\'=1+1,1,2.5,,,"a,b"\n'


def test_a_map_as_csv_has_a_line_for_each_cell() -> None:
    chart = Heatmap("x", "y", ("a", "b"), ("r",), ((1.5, None),), "v")
    assert chart.csv() == "y,x,v\nr,a,1.5\nr,b,\n"


@pytest.mark.parametrize("mode", ["dots", "bars"])
def test_series_at_one_category_stand_side_by_side(mode: Literal["dots", "bars"]) -> None:
    series = tuple(Series(name, (Point(0, 1),), mode=mode) for name in "abc")
    chart = Chart(Axis("", categories=("c",)), Axis(""), series)
    first, second, third = map(chart.shift, range(3))
    assert first < second == 0 < third < 0.5
    assert Chart(Axis(""), Axis(""), (Series("s", ()), Series("t", ()))).shift(1) == 0


def test_logarithmic_ticks_are_closer_for_a_narrow_span() -> None:
    assert [text for _, text in log_ticks([30, 132])] == [
        *("10", "20", "30", "50", "70", "100", "200", "300", "500", "700", "1,000", "2,000"),
        *("3,000", "5,000", "7,000"),
    ]
    assert [at for at, _ in log_ticks([1, 1e6])] == [10.0**power for power in range(7)]
    assert log_ticks([0.0, -1.0]) == ()


def test_a_chart_is_of_the_runs_behind_its_points() -> None:
    series = (Series("a", (Point(1, 1, runs=(3, 1)), Point(2, 1))), Series("b", (Point(1, 1),)))
    assert Chart(Axis(""), Axis(""), series).runs == (1, 3)
    assert Chart(Axis(""), Axis(""), series, of_runs=(7,)).runs == (7,)
