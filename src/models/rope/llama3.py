"""The scaling of LLaMA 3.1 (Grattafiori et al., 2407.21783, and Meta's public code)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.models.rope.base import FactorScaling, NativeRope, Positive


@dataclass(frozen=True)
class Llama3Scaling(FactorScaling):
    """Short wavelengths stay, long ones are interpolated, and those between are blended.

    Attributes:
        low_freq_factor: pairs that turn less often within the native window are interpolated.
        high_freq_factor: pairs that turn more often stay.
    """

    type: Literal["llama3"]
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must exceed low_freq_factor="
                f"{self.low_freq_factor}: they are turns within the native window"
            )

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        frequencies = native.inverse_frequencies(length=length)
        turns = native.window * frequencies / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        kept = np.clip((turns - self.low_freq_factor) / span, 0, 1)
        return frequencies * (kept + (1 - kept) / self.resolved_factor(native.window))

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        return super().rope_parameters(native) | {
            "original_max_position_embeddings": native.window,
            "low_freq_factor": float(self.low_freq_factor),
            "high_freq_factor": float(self.high_freq_factor),
        }


SCALING = Llama3Scaling
