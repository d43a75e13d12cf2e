"""Dynamic NTK scaling: a function of the sequence's length, also in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from src.models.hf_config import native_config, scaled_config
from src.models.loading import load_model
from src.models.rope import NativeRope
from src.models.rope.dynamic import DynamicScaling
from src.models.rope.ntk import NtkScaling

NATIVE = NativeRope(64, 10_000.0, 4096)


def test_readers(check_readers: Callable[..., None]) -> None:
    check_readers(DynamicScaling("dynamic", 32_768), NATIVE)


def test_up_to_the_native_window_nothing_is_scaled() -> None:
    scaling = DynamicScaling("dynamic", 32_768)
    assert scaling.is_native_at(NATIVE, 4096)
    assert scaling.is_native_at(NATIVE, 100)
    assert not scaling.is_native_at(NATIVE, 4097)


def test_beyond_it_the_factor_grows_with_the_length() -> None:
    scaling = DynamicScaling("dynamic", 32_768)
    for length, factor in ((8192, 8 * 2 - 7), (32_768, 8 * 8 - 7)):
        expected = NtkScaling("ntk", 32_768, factor=factor).inverse_frequencies(NATIVE)
        np.testing.assert_allclose(scaling.inverse_frequencies(NATIVE, length), expected)


@pytest.mark.parametrize("name", ["tiny", "tiny_gemma3"])
def test_what_a_model_was_shown_before_makes_no_difference(
    compose_run: Callable[..., Any], name: str
) -> None:
    model = replace(compose_run(f"model={name}").model, native_window=16)
    config = scaled_config(model, DynamicScaling("dynamic", 64))
    network = load_model(model, config, dtype=torch.float64)
    short, medium = (torch.arange(n)[None] for n in (16, 30))
    native = load_model(model, native_config(model), dtype=torch.float64)
    with torch.no_grad():
        first = [network(input_ids=ids).logits for ids in (short, medium)]
        network(input_ids=torch.arange(60)[None])
        again = [network(input_ids=ids).logits for ids in (short, medium)]
        unscaled = [native(input_ids=ids).logits for ids in (short, medium)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[0], unscaled[0])
    assert not torch.allclose(first[1], unscaled[1], rtol=1e-6)
