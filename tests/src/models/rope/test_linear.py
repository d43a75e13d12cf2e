"""Position interpolation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from src.models.rope import LinearScaling, NativeRope

NATIVE = NativeRope(64, 10_000.0, 4096)


@pytest.mark.parametrize("target", [4096, 8192, 32_768, 12_288])
def test_readers(check_readers: Callable[..., None], target: int) -> None:
    check_readers(LinearScaling("linear", target), NATIVE)


@pytest.mark.parametrize("head_dim", [8, 128])
def test_readers_of_other_heads(check_readers: Callable[..., None], head_dim: int) -> None:
    check_readers(LinearScaling("linear", 32_768), NativeRope(head_dim, 5e5, 8192))


def test_a_given_factor_makes_the_window_the_least_multiple_that_holds_the_target(
    check_readers: Callable[..., None],
) -> None:
    check_readers(LinearScaling("linear", 32_768, factor=3.5), NATIVE, window=32_770)


@pytest.mark.parametrize(
    ("native", "target", "length"),
    [
        # 5000 * 1.007 is 5034.999999999999 in float64.
        pytest.param(5000, 5035, 5001, id="rounded down"),
        pytest.param(4096, 32_768, 4096, id="exact"),
        pytest.param(3000, 10_000, 3000, id="a third"),
    ],
)
def test_rounding_does_not_cut_the_target(native: int, target: int, length: int) -> None:
    scaling = LinearScaling("linear", target)
    rope = NativeRope(64, 10_000.0, native)
    assert scaling.multiplied_length(rope) == length
    factor = scaling.resolved_factor(native)
    assert int(length * factor) >= target > int((length - 1) * factor)


def test_positions_are_divided() -> None:
    found = LinearScaling("linear", 32_768).inverse_frequencies(NATIVE)
    np.testing.assert_allclose(found, NATIVE.inverse_frequencies() / 8)
