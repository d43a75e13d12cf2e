"""YaRN (Peng et al., 2309.00071)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.models.rope.base import FactorScaling, NativeRope, Positive


@dataclass(frozen=True)
class YarnScaling(FactorScaling):
    """Fast pairs stay, slow ones are interpolated, those between blended; attention is sharpened.

    Attributes:
        attention_factor: what queries and keys are multiplied by, each; by default
            0.1 ln(factor) + 1, or what follows from `mscale` and `mscale_all_dim` (DeepSeek) where
            both are given.
        beta_fast, beta_slow: pairs that turn more than `beta_fast` times within the native window
            stay, those that turn less than `beta_slow` times are interpolated.
        truncate: round the bounds between these outwards, to whole pairs.
    """

    type: Literal["yarn"]
    attention_factor: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"beta_fast={self.beta_fast} must exceed beta_slow={self.beta_slow}: it is the "
                "number of turns from which a pair is left as it is"
            )
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError("mscale and mscale_all_dim go together: give both or none")
        if self.attention_factor is not None and self.mscale is not None:
            raise ValueError("attention_factor and mscale exclude each other: leave one out")

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        low, high = self._bounds(native)
        pairs = np.arange(native.head_dim // 2, dtype=np.float64)
        interpolated = np.clip((pairs - low) / (high - low), 0, 1)
        factor = self.resolved_factor(native.window)
        return native.inverse_frequencies(length=length) * (
            1 - interpolated + interpolated / factor
        )

    def resolved_attention_factor(self, native: NativeRope) -> float:
        """As given, or as the paper's equation 22 has it."""
        if self.attention_factor is not None:
            return float(self.attention_factor)
        factor = self.resolved_factor(native.window)
        if self.mscale is not None and self.mscale_all_dim is not None:
            return _sharpness(factor, self.mscale) / _sharpness(factor, self.mscale_all_dim)
        return _sharpness(factor)

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """`yarn` with all that transformers knows of it.

        `attn_factor` is for vLLM up to 0.28, which knows neither `attention_factor` nor
        `mscale`: it multiplies it by 0.1 ln(factor) + 1. transformers ignores it.
        """
        if native.by_layer_type and not self.truncate:
            raise ValueError(
                "rope.truncate: transformers does not read false where each kind of layer has a "
                "RoPE of its own, as in this model; use true"
            )
        factor = self.resolved_factor(native.window)
        parameters = super().rope_parameters(native) | {
            "original_max_position_embeddings": native.window,
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
            "truncate": self.truncate,
        }
        attention = self.resolved_attention_factor(native)
        if self.mscale is not None:
            parameters |= {"mscale": self.mscale, "mscale_all_dim": self.mscale_all_dim}
        elif self.attention_factor is not None:
            parameters["attention_factor"] = attention
        if attention != _sharpness(factor):
            parameters["attn_factor"] = attention / _sharpness(factor)
        return parameters

    def _bounds(self, native: NativeRope) -> tuple[float, float]:
        """The pairs, as fractions, between which frequencies are blended."""
        low, high = native.pair_of(self.beta_fast), native.pair_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, native.head_dim - 1)
        # As transformers: a step in place of a ramp.
        return (low, high + 0.001) if low == high else (low, high)


def _sharpness(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


SCALING = YarnScaling
