"""What transformers and vLLM make of an exported model, for the tests of each scaling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.readers.vllm_rules import vllm_rope, vllm_window
from src.models.adapters import QkvParameters, make_trainable
from src.models.config import ModelConfig
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.models.rope import NativeRope, Scaling
from src.training.export import Export

FULL = "full_attention"


@pytest.fixture
def exported(
    compose_run: Callable[..., Any], tmp_path: Path
) -> Callable[[Scaling, NativeRope, str], tuple[ModelConfig, Path]]:
    """exported(scaling, native, "tiny_gemma3") -> a model with that RoPE, and its export folder."""

    def export(scaling: Scaling, native: NativeRope, name: str) -> tuple[ModelConfig, Path]:
        tiny = compose_run(f"model={name}").model
        shape = replace(tiny.shape, head_dim=native.head_dim, rope_theta=native.theta, layers=2)
        model = replace(tiny, shape=shape, native_window=native.window)
        config = scaled_config(model, scaling)
        network = load_model(model, config, dtype=torch.float32)
        trained = make_trainable(network, QkvParameters("qkv"), seed=1)
        target = tmp_path / f"{name}-{scaling.type}"
        moved = {n: p.detach() for n, p in trained.named_parameters() if p.requires_grad}
        written = Export(target, model, scaling, torch.float32, card="")
        written.write_trained(moved, QkvParameters("qkv"), weights=None, seed=1)
        return model, target

    return export


def transformers_rope(folder: Path, length: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor at a length, of the loaded export."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    rotary: Any = network.get_decoder().rotary_emb
    kind = FULL if FULL in network.config.rope_parameters else None
    prefix = f"{kind}_" if kind else ""
    rotary(
        torch.zeros(1, 1, 1), torch.tensor([[length - 1]]), **({"layer_type": kind} if kind else {})
    )
    frequencies = getattr(rotary, f"{prefix}inv_freq").double().numpy()
    return frequencies, float(getattr(rotary, f"{prefix}attention_scaling"))


@pytest.fixture
def check_readers(exported: Callable[..., tuple[ModelConfig, Path]]) -> Callable[..., None]:
    """check_readers(scaling, native): exports mean to transformers and vLLM what the scaling says.

    For a plain family and for one with a RoPE for each kind of layer; at lengths within the native
    window and beyond it. `window` is what vLLM shall find for the plain one, the target by default.
    """

    def check(scaling: Scaling, native: NativeRope, *, window: int | None = None) -> None:
        for name, nested in (("tiny", False), ("tiny_gemma3", True)):
            rope = replace(native, by_layer_type=nested)
            _, folder = exported(scaling, rope, name)
            for length in (2, native.window, native.window + 1, scaling.target_length):
                theirs, factor = transformers_rope(folder, length)
                ours = scaling.inverse_frequencies(rope, length)
                np.testing.assert_allclose(ours, theirs, rtol=2e-6, err_msg=f"{name} {length}")
                assert scaling.resolved_attention_factor(rope) == pytest.approx(factor, rel=1e-6)
            ours = scaling.inverse_frequencies(rope), scaling.resolved_attention_factor(rope)
            overrides = scaling.vllm_overrides(rope)
            theirs, factor = vllm_rope(folder, native.head_dim, overrides)
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-9)
            assert ours[1] == pytest.approx(factor)
            # Gemma 3's length is never multiplied.
            expected = scaling.target_length if nested or window is None else window
            assert vllm_window(folder, overrides) == expected
            # Without them vLLM must not serve more than it rotates as the scaling says.
            dynamic = scaling.type == "dynamic"
            assert vllm_window(folder) == (native.window if dynamic else expected)

    return check
