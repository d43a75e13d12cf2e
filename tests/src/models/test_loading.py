"""Weights from a seed, a folder or an earlier stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.models.config import ModelConfig
from src.models.hf_config import native_config, resolved_shape, scaled_config
from src.models.loading import load_model, load_tokenizer
from src.models.sources import check_available
from tests.src.models.examples import (
    BYTES,
    LINEAR,
    TINY,
    ComposeRun,
    at,
    logits,
    rotations,
)


@pytest.mark.parametrize("name", TINY)
def test_random_weights_follow_their_seed_alone(compose_run: ComposeRun, name: str) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        model = replace(compose_run(f"model={name}").model, weights_seed=seed)
        network = load_model(model, native_config(model), dtype=torch.float32)
        return network.state_dict()

    first = weights(1)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    torch.testing.assert_close(weights(1), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before), "the global random state was moved"
    assert any(not torch.equal(value, first[name]) for name, value in weights(2).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capture", [False, True], ids=["plain", "captured"])
def test_models_are_loaded_in_evaluation_mode_and_dtype(
    tiny: ModelConfig, saved: Path, compose_run: ComposeRun, dtype: torch.dtype, capture: bool
) -> None:
    for model in (tiny, at(saved, compose_run)):
        network = load_model(model, native_config(model), dtype=dtype, capture=capture)
        assert not network.training
        assert {p.dtype for p in network.parameters()} == {dtype}
        expected = "captured_sdpa" if capture else "sdpa"
        assert network.config._attn_implementation == expected


def test_weights_of_an_earlier_stage_replace_the_models_own(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    other = replace(tiny, weights_seed=7)
    stage = load_model(other, native_config(other), dtype=torch.float32)
    stage.save_pretrained(tmp_path)
    scaled = scaled_config(tiny, LINEAR)
    loaded = load_model(tiny, scaled, dtype=torch.float32, weights=tmp_path)
    torch.testing.assert_close(loaded.state_dict(), stage.state_dict(), rtol=0, atol=0)
    assert rotations(loaded)[0] == pytest.approx(1 / 4), "the config given decides the scaling"


def test_a_saved_folder_loads(tiny: ModelConfig, saved: Path, compose_run: ComposeRun) -> None:
    model = at(saved, compose_run)
    check_available(model)
    config = native_config(model)
    network = load_model(model, config, dtype=torch.float32)
    original = load_model(tiny, native_config(tiny), dtype=torch.float32)
    torch.testing.assert_close(logits(network), logits(original))
    assert resolved_shape(model) == tiny.shape
    assert load_tokenizer(model)("abc").input_ids == BYTES("abc").input_ids


def test_a_saved_folder_takes_a_scaling(saved: Path, compose_run: ComposeRun) -> None:
    model = at(saved, compose_run)
    scaled = scaled_config(model, LINEAR)
    network = load_model(model, scaled, dtype=torch.float32, capture=True)
    assert rotations(network)[0] == pytest.approx(1 / 4)
