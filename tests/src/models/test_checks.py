"""Configs and weights that are refused, and unlisted families that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.models.config import ModelConfig, ModelError
from src.models.hf_config import native_config, scaled_config
from src.models.loading import load_model
from src.models.rope.dynamic import DynamicScaling
from src.models.shapes import facts_of, shape_of
from src.passes.capture import QKVCapture
from tests.src.models.examples import (
    LINEAR,
    ComposeRun,
    at,
    logits,
    rotations,
    saved_as,
)


@pytest.mark.parametrize("family", ["olmo", "starcoder2", "phi"])
def test_a_family_without_a_file_works_by_the_defaults(
    tmp_path: Path, compose_run: ComposeRun, family: str
) -> None:
    model = saved_as(tmp_path, compose_run, family, family)
    network = load_model(model, scaled_config(model, LINEAR), dtype=torch.float32, capture=True)
    assert rotations(network)[0] == pytest.approx(1 / 4)
    facts = facts_of(network.config)
    capture = QKVCapture(range(facts.layers))
    with capture.running():
        logits(network)
    assert capture.take().keys() == {0, 1}


@pytest.mark.parametrize(
    ("model_type", "family", "more", "missing"),
    [
        ("qwen2", "llama", {}, r"is of type 'qwen2': use model\.family=qwen2"),
        ("gemma3_text", "gemma3_text", {}, r"a RoPE for each kind of layer.* src/models/families"),
        ("gemma2", "gemma2", {}, r"attn_logit_softcapping=50\.0 .* objectives do not know"),
        ("gpt2", "gpt2", {}, r"no rope_parameters in its config"),
        ("llama4_text", "llama4_text", {}, r"layers of chunked_attention, which relations cannot"),
        (
            "llama4_text",
            "llama4_text",
            {"layer_types": ["full_attention"] * 2},
            r"Llama4ForCausalLM does not say .* the decoder",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_a_family_that_cannot_be_had_is_refused_with_what_is_missing(
    tmp_path: Path,
    compose_run: ComposeRun,
    model_type: str,
    family: str,
    more: dict,
    missing: str,
) -> None:
    model = saved_as(tmp_path, compose_run, model_type, family, **more)
    with pytest.raises(ModelError, match=missing):
        native_config(model)


def test_a_stated_shape_that_is_the_folders_is_taken(
    tiny: ModelConfig, saved: Path, compose_run: ComposeRun
) -> None:
    model = replace(at(saved, compose_run), shape=tiny.shape)
    assert shape_of(native_config(model)) == tiny.shape


def test_a_stated_shape_that_is_another_is_refused_with_both(
    tiny: ModelConfig, saved: Path, compose_run: ComposeRun
) -> None:
    assert tiny.shape is not None
    model = replace(at(saved, compose_run), shape=replace(tiny.shape, layers=3))
    with pytest.raises(ModelError, match=r"model.shape says .*layers=3.* holds .*layers=2"):
        native_config(model)


def test_native_rope_that_grows_with_the_sequence_is_refused(
    tiny: ModelConfig, tmp_path: Path, compose_run: ComposeRun
) -> None:
    scaled_config(tiny, DynamicScaling("dynamic", 32_768)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be scaled \(rope_type='dynamic'; known are "):
        scaled_config(at(tmp_path, compose_run), LINEAR)


def without_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if "layernorm" not in name}


def with_a_shorter_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"model.norm.weight": tensors["model.norm.weight"][:-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_norms, r"input_layernorm\.weight is missing; .* and 1 more; copy or save"),
        (with_a_shorter_norm, r"model\.norm\.weight has shape \[31\], the model \[32\]"),
    ],
)
def test_weights_that_a_file_does_not_hold_are_not_drawn(
    saved: Path,
    compose_run: ComposeRun,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    file = saved / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    model = at(saved, compose_run)
    with pytest.raises(ModelError, match=message):
        load_model(model, native_config(model), dtype=torch.float32)


def test_tied_weights_need_not_be_held_twice(
    tiny: ModelConfig, tmp_path: Path, compose_run: ComposeRun
) -> None:
    assert tiny.shape is not None
    tied = replace(tiny, shape=replace(tiny.shape, tied_embeddings=True))
    network = load_model(tied, native_config(tied), dtype=torch.float32)
    network.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = at(tmp_path, compose_run)
    loaded = load_model(model, native_config(model), dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(network))
