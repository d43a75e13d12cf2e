"""YaRN."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from src.models.rope import NativeRope
from src.models.rope.yarn import YarnScaling

NATIVE = NativeRope(64, 10_000.0, 4096)
CASES = {
    "as the paper": {},
    "target is the window": {"target_length": 4096},
    "other bounds": {"beta_fast": 16.0, "beta_slow": 2.0},
    "given attention factor": {"attention_factor": 1.1},
    "no attention factor": {"attention_factor": 1.0},
    "mscale": {"mscale": 1.0, "mscale_all_dim": 0.8},
}


@pytest.mark.parametrize("case", CASES)
def test_readers(check_readers: Callable[..., None], case: str) -> None:
    check_readers(replace(YarnScaling("yarn", 32_768), **CASES[case]), NATIVE)


def test_a_given_factor_leaves_the_window(check_readers: Callable[..., None]) -> None:
    check_readers(YarnScaling("yarn", 32_768, factor=10.0), NATIVE)


def test_bounds_that_are_no_whole_pairs(compose_run: Callable[..., Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = YarnScaling("yarn", 32_768, truncate=False)
    config = LlamaConfig(
        head_dim=64,
        max_position_embeddings=32_768,
        rope_parameters=scaling.rope_parameters(NATIVE),
    )
    theirs = LlamaRotaryEmbedding(config).inv_freq.tolist()
    assert scaling.inverse_frequencies(NATIVE).tolist() == pytest.approx(theirs, rel=2e-6)
    assert theirs != pytest.approx(
        YarnScaling("yarn", 32_768).inverse_frequencies(NATIVE).tolist(), rel=1e-3
    )
    with pytest.raises(ValueError, match=r"rope\.truncate: transformers does not read false"):
        scaling.rope_parameters(replace(NATIVE, by_layer_type=True))


def test_attention_is_sharpened_as_the_paper_has_it() -> None:
    factor = YarnScaling("yarn", 32_768).resolved_attention_factor(NATIVE)
    assert factor == pytest.approx(0.1 * math.log(8) + 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta_fast": 1.0}, r"beta_fast=1\.0 must exceed beta_slow=1\.0"),
        ({"mscale": 1.0}, "go together"),
        ({"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}, "exclude each other"),
    ],
)
def test_contradictions_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YarnScaling("yarn", 32_768, **fields)
