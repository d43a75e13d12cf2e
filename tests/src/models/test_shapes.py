"""Sizes and windows, as a config has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from src.models.config import ModelConfig
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.models.shapes import attention_windows, facts_of, shape_of
from tests.src.models.examples import (
    logits,
)


def test_facts_are_the_configs(tiny: ModelConfig) -> None:
    config = native_config(tiny)
    assert shape_of(config) == tiny.shape
    facts = facts_of(config)
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (2, 4, 2, 8)
    assert facts.windows == (None, None)


def windowed(tiny: ModelConfig, window: int | None) -> ModelConfig:
    assert tiny.shape is not None
    shape = replace(tiny.shape, layers=1)
    return replace(tiny, family="mistral", sliding_window=window, shape=shape)


@pytest.mark.parametrize("window", [None, 1, 5, 64])
def test_windows_of_mistral_are_as_far_as_it_looks(tiny: ModelConfig, window: int | None) -> None:
    """Change one token and see which later positions of a single layer notice."""
    model = windowed(tiny, window)
    config = native_config(model)
    assert attention_windows(config) == (window,)

    network = load_model(model, config, dtype=torch.float64, capture=True)
    ids_bt = torch.arange(20)[None].repeat(2, 1)
    changed = 3
    ids_bt[1, changed] = 200
    before, after = logits(network, ids_bt)
    noticed = (before != after).any(-1).nonzero().flatten().tolist()
    last = 20 if window is None else min(20, changed + window)
    assert noticed == list(range(changed, last))


def test_windows_follow_layer_types(tiny: ModelConfig) -> None:
    config = native_config(tiny)
    config.sliding_window = 16
    config.layer_types = ["full_attention", "sliding_attention"]
    assert attention_windows(config) == (None, 16)
