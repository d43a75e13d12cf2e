"""Position interpolation (Chen et al., 2306.15595)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from src.models.rope.base import FactorScaling, NativeRope


@dataclass(frozen=True)
class LinearScaling(FactorScaling):
    """Every position is divided by the factor."""

    type: Literal["linear"]

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        return native.inverse_frequencies(length=length) / self.resolved_factor(native.window)

    multiplied_length = FactorScaling.divided_target


SCALING = LinearScaling
