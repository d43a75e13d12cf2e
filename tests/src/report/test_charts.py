from __future__ import annotations

import pytest

from src.report.charts import (
    Point,
    Series,
    binary_tokens,
    method_slots,
    short_number,
    table_csv,
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
        (24_576, "24.6k"),
        (5_000_000, "5M"),
    ],
)
def test_budgets_are_multiples_of_two_to_the_twenty(tokens: int, shown: str) -> None:
    assert binary_tokens(tokens) == shown


@pytest.mark.parametrize(("value", "shown"), [(950, "950"), (1500, "1.5k"), (2e9, "2G")])
def test_short_numbers(value: float, shown: str) -> None:
    assert short_number(value) == shown


def test_ticks_are_powers_of_ten() -> None:
    assert token_ticks([500_000, 3e7])[0] == (1e5, "100k")
    assert token_ticks([]) == ()


def test_a_method_keeps_its_colour_whichever_others_there_are() -> None:
    assert method_slots(["cpt_long"])["cpt_long"] == method_slots(["own", "linearard"])["cpt_long"]
    assert method_slots(["b", "a"])["a"] < method_slots(["b", "a"])["b"]


def test_csv_quotes_and_guards() -> None:
    assert table_csv(("a", "b"), [("=x", 1.5), ("p,q", None)]) == 'a,b\n\'=x,1.5\n"p,q",\n'
