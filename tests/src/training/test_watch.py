"""What the numbers of a step say."""

from __future__ import annotations

import math

import pytest

from src.training.watch import Watch


def numbers(loss: float, norm: float = 1.0) -> dict[str, float]:
    return {"loss/total": loss, "grad_norm": norm}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_a_skipped_step(bad: float) -> None:
    assert Watch().flags(numbers(bad)) == Watch().flags(numbers(1.0, bad)) == {"skipped": 1}


def test_what_leaps_out_of_its_neighbourhood_is_a_spike() -> None:
    watch = Watch(numbers(2 + 0.1 * math.sin(step)) for step in range(30))
    assert watch.flags(numbers(2.3)) == {}, "not twice the usual"
    assert watch.flags(numbers(8.0)) == {"spike": 1}
    assert watch.flags(numbers(2.0, norm=9.0)) == {"spike": 1}
    assert watch.flags(numbers(2.0)) == {}


def test_a_loss_that_varies_a_lot_leaps_further() -> None:
    varying = [numbers(2.0 + step % 2) for step in range(30)]
    assert Watch(varying).flags(numbers(8.0)) == {"spike": 1}
    assert Watch(varying).flags(numbers(6.0)) == {}, "twice the usual 2.5, but few deviations"
    steady = Watch(numbers(2.0 + 0.001 * (step % 2)) for step in range(30))
    assert steady.flags(numbers(3.0)) == {}, "hundreds of deviations, but not twice the usual"


def test_a_resumed_stage_flags_what_an_undisturbed_one_does() -> None:
    course = [numbers(2 + 0.3 * math.sin(3 * step) + 9 * (step == 40)) for step in range(60)]
    whole = Watch()
    flags = [whole.flags(line) for line in course]
    assert flags[40] == {"spike": 1}
    resumed = Watch(course[:35])
    assert [resumed.flags(line) for line in course[35:]] == flags[35:]


def test_a_stage_that_has_just_begun_has_no_spikes() -> None:
    watch = Watch()
    assert [watch.flags(numbers(10.0**step)) for step in range(-5, 5)] == [{}] * 10
