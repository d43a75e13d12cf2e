"""NTK-aware scaling."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from src.models.rope import NativeRope
from src.models.rope.ntk import NtkScaling

NATIVE = NativeRope(64, 10_000.0, 4096)


@pytest.mark.parametrize("factor", [None, 5.0])
def test_readers(check_readers: Callable[..., None], factor: float | None) -> None:
    check_readers(NtkScaling("ntk", 32_768, factor=factor), NATIVE)


def test_the_slowest_pair_is_interpolated_and_the_fastest_is_not() -> None:
    before = NATIVE.inverse_frequencies()
    after = NtkScaling("ntk", 32_768).inverse_frequencies(NATIVE)
    assert after[0] == before[0]
    assert before[-1] / after[-1] == pytest.approx(8.0)


def test_heads_with_one_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 2 dimensions"):
        NtkScaling("ntk", 32_768).rope_parameters(NativeRope(2, 1e4, 4096))
