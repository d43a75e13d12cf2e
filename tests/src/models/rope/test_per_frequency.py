"""An explicit table of factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from src.models.rope import NativeRope
from src.models.rope.per_frequency import PerFrequencyScaling
from src.planning import plan
from src.settings.strict import ConfigError

NATIVE = NativeRope(8, 10_000.0, 4096)
SCALING = PerFrequencyScaling("per_frequency", 32_768, factors=(1.0, 1.5, 3.0, 8.0))


def test_readers(check_readers: Callable[..., None]) -> None:
    check_readers(SCALING, NATIVE)


def test_it_is_the_same_at_every_length_and_leaves_attention_alone() -> None:
    expected = NATIVE.inverse_frequencies() / np.array([1.0, 1.5, 3.0, 8.0])
    for length in (1, 4096, 32_768):
        np.testing.assert_allclose(SCALING.inverse_frequencies(NATIVE, length), expected)
    assert SCALING.resolved_attention_factor(NATIVE) == 1.0


def test_a_table_of_another_length_is_refused_by_the_plan(compose_run: Callable[..., Any]) -> None:
    run = compose_run("model=tiny", "rope=per_frequency", "rope.factors=[1.0,2.0]")
    with pytest.raises(ConfigError, match=r"rope\.factors has 2 factors.* give 4"):
        plan.make(run, world_size=1)
