"""LongRoPE: one table within the native window, another one beyond."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from src.models.rope import NativeRope
from src.models.rope.longrope import LongRopeScaling

NATIVE = NativeRope(8, 10_000.0, 4096)
SHORT, LONG = (1.0, 1.0, 1.05, 1.2), (1.0, 2.0, 5.0, 9.0)


@pytest.mark.parametrize("attention", [None, 1.0, 1.3])
@pytest.mark.parametrize("tables", [False, True], ids=["default tables", "given tables"])
def test_readers(check_readers: Callable[..., None], tables: bool, attention: float | None) -> None:
    given = {"short_factors": SHORT, "long_factors": LONG} if tables else {}
    scaling = LongRopeScaling("longrope", 32_768, attention_factor=attention, **given)
    check_readers(scaling, NATIVE)


def test_a_given_factor_decides_the_attention(check_readers: Callable[..., None]) -> None:
    check_readers(LongRopeScaling("longrope", 32_768, factor=4.0), NATIVE)


def test_the_sequences_length_decides_the_table() -> None:
    scaling = LongRopeScaling("longrope", 32_768, short_factors=SHORT, long_factors=LONG)
    plain = NATIVE.inverse_frequencies()
    for length, table in ((4096, SHORT), (4097, LONG), (None, LONG)):
        np.testing.assert_allclose(scaling.inverse_frequencies(NATIVE, length), plain / table)


def test_attention_is_sharpened_as_the_paper_has_it() -> None:
    factor = LongRopeScaling("longrope", 32_768).resolved_attention_factor(NATIVE)
    assert factor == pytest.approx(math.sqrt(1 + math.log(8) / math.log(4096)))


@pytest.mark.parametrize("name", ["short_factors", "long_factors"])
def test_a_table_of_another_length_is_refused(name: str) -> None:
    scaling = LongRopeScaling("longrope", 32_768, **{name: (1.0, 2.0)})
    with pytest.raises(ValueError, match=rf"rope\.{name} has 2 factors"):
        scaling.rope_parameters(NATIVE)
