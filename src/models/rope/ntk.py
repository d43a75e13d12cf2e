"""NTK-aware scaling (bloc97, 2023; section 3.1 of YaRN, Peng et al., 2309.00071)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.models.rope.base import FactorScaling, NativeRope


@dataclass(frozen=True)
class NtkScaling(FactorScaling):
    """A base theta * factor ** (d / (d - 2)): the slowest pair turns `factor` times slower.

    The faster a pair the less it changes, and the fastest does not.

    It is fixed, whatever the sequence's length; `dynamic` is the one that follows it.
    """

    type: Literal["ntk"]

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        return native.inverse_frequencies(self._theta(native), length)

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """Unscaled RoPE of the larger base: transformers has no type for it and needs none."""
        return {"rope_type": "default", "rope_theta": self._theta(native)}

    def _theta(self, native: NativeRope) -> float:
        return stretched_theta(native, self.resolved_factor(native.window))


def stretched_theta(native: NativeRope, factor: float) -> float:
    """The base with which the slowest pair turns `factor` times slower.

    Raises:
        ValueError: heads of two dimensions, whose only pair's frequency is 1 for every base.
    """
    if native.head_dim <= 2:
        raise ValueError(
            f"rope.type: NTK-aware scalings need heads of more than {native.head_dim} dimensions"
        )
    return float(native.theta * factor ** (native.head_dim / (native.head_dim - 2)))


SCALING = NtkScaling
