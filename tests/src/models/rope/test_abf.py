"""Adjusted base frequency."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from src.models.rope import BaseFrequencyScaling, NativeRope

NATIVE = NativeRope(64, 10_000.0, 4096)


def test_readers(check_readers: Callable[..., None]) -> None:
    check_readers(BaseFrequencyScaling("abf", 32_768, theta=2e7), NATIVE)


def test_only_the_base_changes() -> None:
    scaling = BaseFrequencyScaling("abf", 32_768, theta=100.0)
    np.testing.assert_allclose(scaling.inverse_frequencies(NativeRope(4, 9.0, 8)), [1.0, 0.1])
