"""The scaling of LLaMA 3.1."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from src.models.rope import NativeRope
from src.models.rope.llama3 import Llama3Scaling

NATIVE = NativeRope(64, 500_000.0, 8192)


@pytest.mark.parametrize("factor", [None, 8.0])
@pytest.mark.parametrize("factors", [(1.0, 4.0), (2.0, 3.0)], ids=str)
def test_readers(
    check_readers: Callable[..., None], factor: float | None, factors: tuple[float, float]
) -> None:
    low, high = factors
    scaling = Llama3Scaling(
        "llama3", 32_768, factor=factor, low_freq_factor=low, high_freq_factor=high
    )
    check_readers(scaling, NATIVE)


def test_fast_pairs_stay_and_slow_ones_are_interpolated() -> None:
    before = NATIVE.inverse_frequencies()
    after = Llama3Scaling("llama3", 32_768).inverse_frequencies(NATIVE)
    turns = 8192 * before / (2 * math.pi)
    assert set(before[turns > 4] / after[turns > 4]) == {1.0}
    assert before[turns < 1] / after[turns < 1] == pytest.approx(4.0)


def test_bounds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match=r"high_freq_factor=1\.0 must exceed low_freq_factor=1\.0"):
        Llama3Scaling("llama3", 32_768, high_freq_factor=1.0)
