"""What all scalings share: unscaled RoPE, the target, tables, and the exported folder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from src.models.rope import SCALINGS, BaseFrequencyScaling, LinearScaling, NativeRope, Scaling
from src.models.rope.base import checked_table

NATIVE = NativeRope(64, 10_000.0, 4096)


def test_unscaled_frequencies_are_powers_of_the_base() -> None:
    found = NativeRope(6, 1000.0, 8).inverse_frequencies()
    np.testing.assert_allclose(found, [1.0, 0.1, 0.01])
    np.testing.assert_allclose(NativeRope(4, 9.0, 8).inverse_frequencies(100.0), [1.0, 0.1])


@pytest.mark.parametrize("target", [4096, 32_768, 131_072])
def test_the_factor_follows_from_the_target(target: int) -> None:
    assert LinearScaling("linear", target).resolved_factor(4096) == target / 4096
    assert BaseFrequencyScaling("abf", target, theta=1e6).resolved_factor(4096) == target / 4096
    assert LinearScaling("linear", target, factor=3.0).resolved_factor(4096) == 3.0


@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling("linear", 1024),
        LinearScaling("linear", 1024, factor=4.0),
        BaseFrequencyScaling("abf", 1024, theta=1e6),
    ],
)
def test_target_below_the_native_window_is_refused(scaling: Scaling) -> None:
    with pytest.raises(ValueError, match=r"rope\.target_length is 1024, below .* 4096"):
        scaling.resolved_factor(4096)


def test_a_table_of_another_length_is_refused_with_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"rope\.it has 3 factors.* 64 dimensions .* give 32"):
        checked_table("it", (1.0, 2.0, 3.0), NATIVE)


def test_every_scaling_is_found_under_its_files_name(compose_plain: Callable[..., dict]) -> None:
    names = {scaling.__module__.rpartition(".")[2] for scaling in SCALINGS}
    assert names >= {"linear", "abf", "ntk", "dynamic", "yarn", "longrope", "llama3"}
    assert names >= {"per_frequency"}
    for name in names - {"per_frequency", "own"}:
        assert compose_plain(f"rope={name}")["rope"]["type"] == name
