"""What vLLM makes of an exported folder, by its rules: window, frequencies, attention factor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FULL = "full_attention"


def vllm_window(folder: Path, overrides: Mapping[str, int] | None = None) -> int:
    """The window that vLLM derives from an exported folder, with values of `--hf-overrides`.

    As `_get_and_verify_max_len` of 0.33 does it: the least of the lengths that config and tokenizer
    state, times the scaling's factor, except for some types and for Gemma 3.
    """
    config = _config(folder, overrides)
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
        if one["rope_type"] not in ("su", "longrope", "llama3", "yarn"):
            factor = one.get("factor", factor)
    return int(window * factor)


def vllm_rope(
    folder: Path, head_dim: int, overrides: Mapping[str, int] | None = None
) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor that vLLM rotates by, for its whole window.

    As `get_rope` of 0.33 chooses and reads: it goes by the window where transformers goes by the
    sequence.
    """
    config = _config(folder, overrides)
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
        stretch = factor * longest / p.get("max_trained_positions", longest) - (factor - 1)
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
    frequencies = plain / factor * (1 - mask) + plain * mask
    if p.get("attention_factor") is not None:
        return frequencies, p["attention_factor"]

    def sharpness(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if p.get("mscale") and p.get("mscale_all_dim"):
        return frequencies, sharpness(p["mscale"]) / sharpness(p["mscale_all_dim"])
    return frequencies, sharpness(1.0)


def _config(folder: Path, overrides: Mapping[str, int] | None) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")) | dict(overrides or {})
