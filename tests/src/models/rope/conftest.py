"""What transformers and vLLM make of an exported model, for the tests of each scaling."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from src.models.adapters import QkvParameters, make_trainable
from src.models.config import ModelConfig
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.models.rope import NativeRope, Scaling
from src.training.export import export as write_export

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
        write_export(
            target,
            {n: p.detach() for n, p in trained.named_parameters() if p.requires_grad},
            model=model,
            scaling=scaling,
            parameters=QkvParameters("qkv"),
            weights=None,
            dtype=torch.float32,
            seed=1,
            card="",
        )
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


def vllm_window(folder: Path) -> int:
    """The window that vLLM derives from an exported folder.

    As its `_get_and_verify_max_len` does it: the least of the lengths that config and tokenizer
    state, times the scaling's factor, except for some types and for Gemma 3.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    keys += ("model_max_length", "max_target_positions", "max_sequence_length")
    keys += ("max_seq_length", "seq_len")
    window = min(config[key] for key in keys if config.get(key) is not None)
    window = min(window, tokenizer.get("model_max_length", window))
    if "gemma3" in config["model_type"]:
        return int(window)
    parameters = config["rope_parameters"]
    nested = set(parameters) <= {"full_attention", "sliding_attention"}
    factor = 1.0
    for one in parameters.values() if nested else [parameters]:
        if one["rope_type"] not in ("su", "longrope", "llama3"):
            factor = one.get("factor", factor)
            if one["rope_type"] == "yarn":
                window = one["original_max_position_embeddings"]
    return int(window * factor)


def vllm_rope(folder: Path, head_dim: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor that vLLM rotates by, for its whole window.

    As its `get_rope` chooses and reads: it goes by the window where transformers goes by the
    sequence, and works attention factors out from other keys.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    p = config["rope_parameters"]
    p = p.get(FULL, p)
    assert isinstance(p.get("factor", 1.0), float), "vLLM takes a float only"
    half = np.arange(head_dim // 2, dtype=np.float64)
    plain = p["rope_theta"] ** (-2 * half / head_dim)
    longest = config["max_position_embeddings"]
    kind, factor = p["rope_type"], p.get("factor")
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "dynamic":
        stretch = factor * (longest * factor) / longest - (factor - 1)
        theta = p["rope_theta"] * stretch ** (head_dim / (head_dim - 2))
        return theta ** (-2 * half / head_dim), 1.0
    original = p["original_max_position_embeddings"]
    if kind == "longrope":
        table = p["long_factor"] if vllm_window(folder) > original else p["short_factor"]
        scale = longest / original
        mscale = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        return plain / np.array(table), p.get("long_mscale", mscale)
    if kind == "llama3":
        waves = 2 * math.pi / plain
        low, high = original / p["low_freq_factor"], original / p["high_freq_factor"]
        smooth = (original / waves - p["low_freq_factor"]) / (
            p["high_freq_factor"] - p["low_freq_factor"]
        )
        middle = (1 - smooth) * plain / factor + smooth * plain
        scaled = np.where(waves > low, plain / factor, np.where(waves < high, plain, middle))
        return scaled, 1.0
    assert kind == "yarn"

    def dimension(rotations: float) -> float:
        turns = math.log(original / (rotations * 2 * math.pi))
        return head_dim * turns / (2 * math.log(p["rope_theta"]))

    low, high = dimension(p["beta_fast"]), dimension(p["beta_slow"])
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    mask = 1 - np.clip((half - low) / (high - low), 0, 1)
    mscale = (0.1 * math.log(factor) + 1.0) if factor > 1 else 1.0
    return plain / factor * (1 - mask) + plain * mask, mscale * p.get("attn_factor", 1.0)


@pytest.fixture
def check_readers(exported: Callable[..., tuple[ModelConfig, Path]]) -> Callable[..., None]:
    """check_readers(scaling, native): exports mean to transformers and vLLM what the scaling says.

    For a plain family and for one with a RoPE for each kind of layer; at lengths within the native
    window and beyond it. `window` is what vLLM shall find, the target by default.
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
            theirs, factor = vllm_rope(folder, native.head_dim)
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-9)
            assert ours[1] == pytest.approx(factor)
            expected = window or scaling.target_length
            if nested:
                # Gemma 3's length is never multiplied, and dynamic scaling needs the native one.
                dynamic = scaling.type == "dynamic"
                expected = native.window if dynamic else scaling.target_length
            assert vllm_window(folder) == expected

    return check
