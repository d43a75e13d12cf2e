"""Adjusted base frequency (Xiong et al., 2309.16039)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from src.models.rope.base import NativeRope, Scaling


@dataclass(frozen=True)
class BaseFrequencyScaling(Scaling):
    """A larger theta and the same positions.

    The literature has no agreed rule for theta by the factor, so theta is required. LongReD
    (2502.07365) uses 2e7 for LLaMA-3-8B at 32K.
    """

    type: Literal["abf"]
    theta: Annotated[float, Field(gt=1)]

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        return native.inverse_frequencies(self.theta, length)

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """Unscaled RoPE of the larger base.

        Raises:
            ValueError: it is smaller than the model's own.
        """
        if self.theta < native.theta:
            raise ValueError(
                f"rope.theta is {self.theta:g}, below the model's own base of {native.theta:g}, "
                "which makes the window shorter: give a larger one"
            )
        return {"rope_type": "default", "rope_theta": float(self.theta)}


SCALING = BaseFrequencyScaling
