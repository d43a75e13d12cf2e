"""Scalings agree with transformers' own frequencies and with what is exported."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from src.rope import BaseFrequencyScaling, LinearScaling

SCALINGS = [
    pytest.param(LinearScaling("linear", 32768), id="linear-8"),
    pytest.param(LinearScaling("linear", 4096), id="linear-1"),
    pytest.param(LinearScaling("linear", 32768, factor=3.5), id="linear-given-factor"),
    pytest.param(BaseFrequencyScaling("abf", 32768, theta=2e7), id="abf"),
]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_transformers_own(scaling: LinearScaling, head_dim: int) -> None:
    parameters = scaling.rope_parameters(10000.0, 4096)
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters=parameters,
    )
    theirs = LlamaRotaryEmbedding(config).inv_freq.double().numpy()
    np.testing.assert_allclose(
        scaling.inverse_frequencies(head_dim, 10000.0, 4096), theirs, rtol=1e-6
    )


def test_linear_factor_follows_from_the_target() -> None:
    assert LinearScaling("linear", 32768).resolved_factor(4096) == 8.0
    assert LinearScaling("linear", 32768, factor=4.0).resolved_factor(4096) == 4.0


@pytest.mark.parametrize(
    "scaling", [LinearScaling("linear", 1024), BaseFrequencyScaling("abf", 1024, theta=1e6)]
)
def test_target_below_the_native_window_is_refused(scaling: LinearScaling) -> None:
    with pytest.raises(ValueError, match=r"rope\.target_length is 1024, below .* 4096"):
        scaling.resolved_factor(4096)
