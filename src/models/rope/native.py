"""The scaling that a model's own RoPE has, read from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.models.rope.base import Scaling
from src.models.rope.linear import LinearScaling
from src.models.rope.llama3 import Llama3Scaling
from src.models.rope.longrope import LongRopeScaling
from src.models.rope.yarn import YarnScaling

# Types of RoPE that a model may have by itself.
NATIVE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


def scaling_of(parameters: Mapping[str, Any], window: int) -> tuple[Scaling, int] | None:
    """A model's own scaling, and the window that it had before; None for unscaled RoPE.

    Args:
        parameters: `config.rope_parameters` of transformers 5, of one kind of layer.
        window: `config.max_position_embeddings`.

    Raises:
        ValueError: another type than NATIVE_TYPES, or values that its class refuses.
    """
    kind = parameters["rope_type"]
    if kind == "default":
        return None
    if kind not in NATIVE_TYPES:
        raise ValueError(f"rope_type={kind!r}; known are {', '.join(NATIVE_TYPES)}")
    if kind == "linear":
        factor = float(parameters["factor"])
        return LinearScaling("linear", window, factor=factor), max(1, round(window / factor))
    original = int(parameters["original_max_position_embeddings"])
    factor = float(parameters.get("factor") or window / original)
    target = max(original, round(original * factor))
    stated = {key: value for key, value in parameters.items() if value is not None}
    if kind == "llama3":
        low, high = float(stated["low_freq_factor"]), float(stated["high_freq_factor"])
        return Llama3Scaling(
            "llama3", target, factor=factor, low_freq_factor=low, high_freq_factor=high
        ), original
    if kind == "longrope":
        return LongRopeScaling(
            "longrope",
            target,
            factor=factor,
            short_factors=tuple(map(float, stated["short_factor"])),
            long_factors=tuple(map(float, stated["long_factor"])),
            attention_factor=stated.get("attention_factor"),
        ), original
    # As transformers: an attention factor that is given wins over mscale.
    names = ["beta_fast", "beta_slow", "truncate"]
    names += ["attention_factor"] if "attention_factor" in stated else ["mscale", "mscale_all_dim"]
    values = {name: stated[name] for name in names if name in stated}
    return YarnScaling("yarn", target, factor=factor, **values), original
