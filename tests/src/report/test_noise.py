from __future__ import annotations

import math
import statistics

import pytest

from src.report.noise import Estimate, Mark, around, marks, over_seeds


def test_one_seed_keeps_its_own_interval() -> None:
    one = Estimate(95.0, 94.0, 95.5)
    assert over_seeds([one]) is one
    assert over_seeds([]) is None
    assert one.half == 1.0


@pytest.mark.parametrize(
    ("seeds", "t"), [(2, 12.706), (3, 4.303), (11, 2.228), (12, 2.201), (31, 2.042), (121, 1.980)]
)
def test_seeds_give_students_interval_of_the_mean(seeds: int, t: float) -> None:
    values = [95.0 + number**1.5 for number in range(seeds)]
    found = over_seeds([Estimate(value) for value in values])
    assert found is not None
    half = t * statistics.stdev(values) / math.sqrt(seeds)
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.half == pytest.approx(half, rel=1e-3)
    assert found.seeds == seeds


def test_the_items_noise_does_not_shrink_with_seeds() -> None:
    found = over_seeds([Estimate(90.0, 89.0, 91.0)] * 4)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(89.0), pytest.approx(91.0))


def test_a_standard_error_becomes_an_interval() -> None:
    assert around(50.0, 1.0) == Estimate(50.0, 50 - 1.96, 50 + 1.96)
    assert around(50.0, None) == Estimate(50.0)


def test_differences_inside_the_noise_are_told() -> None:
    found = marks(
        [
            Estimate(98.0, 97.0, 99.0),
            Estimate(96.7, 95.7, 97.7),  # 1.3 apart, noise 1.41
            Estimate(96.0, 95.0, 97.0),  # 2 apart
            Estimate(90.0),
            None,
        ]
    )
    assert found == [Mark.BEST, Mark.NEAR, Mark.WORSE, Mark.UNKNOWN, Mark.ABSENT]


def test_the_best_is_the_lowest_where_that_is_better() -> None:
    assert marks([Estimate(3.0), Estimate(2.0)], higher_is_better=False)[1] is Mark.BEST
    assert marks([None, None]) == [Mark.ABSENT, Mark.ABSENT]
