"""RoPE scalings: each one dataclass with its fields, its mathematics and its export.

A scaling is chosen by `rope.type`; `rope.target_length` says how long the extended window shall be
and the factor follows from the model's native window unless `rope.factor` is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field


def default_inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Unscaled RoPE: theta ** (-2 i / head_dim) for i in [0, head_dim / 2) (Su et al., 2104.09864).

    Returns a float64 array of shape [head_dim / 2], in radians a token.
    """
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every position is divided by the factor (Chen et al., 2306.15595)."""

    type: Literal["linear"]
    target_length: Annotated[int, Field(gt=0)]
    factor: Annotated[float, Field(ge=1)] | None = None

    def resolved_factor(self, native_window: int) -> float:
        """The factor given, or target_length / native_window.

        Raises:
            ValueError: the target is shorter than the native window and no factor is given.
        """
        if self.factor is not None:
            return self.factor
        if self.target_length < native_window:
            raise ValueError(
                f"rope.target_length is {self.target_length}, below the model's native window of "
                f"{native_window} tokens: a scaling extends the window, so give at least that"
            )
        return self.target_length / native_window

    def inverse_frequencies(self, head_dim: int, theta: float, native_window: int) -> np.ndarray:
        """Scaled inverse frequencies, float64 [head_dim / 2]."""
        factor = self.resolved_factor(native_window)
        return default_inverse_frequencies(head_dim, theta) / factor

    def rope_parameters(self, theta: float, native_window: int) -> dict[str, Any]:
        """What transformers 5 keeps in `config.rope_parameters`."""
        return {
            "rope_type": "linear",
            "factor": self.resolved_factor(native_window),
            "rope_theta": theta,
        }


@dataclass(frozen=True)
class BaseFrequencyScaling:
    """Adjusted base frequency: a larger theta, same positions (Xiong et al., 2309.16039).

    There is no rule for theta from the factor that the literature agrees on, so it is required:
    LongReD (2502.07365) uses 2e7 for LLaMA-3-8B at 32K.
    """

    type: Literal["abf"]
    target_length: Annotated[int, Field(gt=0)]
    theta: Annotated[float, Field(gt=1)]

    def resolved_factor(self, native_window: int) -> float:
        """How many times longer than the native window the target is (ABF itself has no factor).

        Raises:
            ValueError: the target is shorter than the native window.
        """
        if self.target_length < native_window:
            raise ValueError(
                f"rope.target_length is {self.target_length}, below the model's native window of "
                f"{native_window} tokens: a scaling extends the window, so give at least that"
            )
        return self.target_length / native_window

    def inverse_frequencies(self, head_dim: int, theta: float, native_window: int) -> np.ndarray:
        """Inverse frequencies of the larger base, float64 [head_dim / 2]; `theta` is replaced."""
        del theta, native_window
        return default_inverse_frequencies(head_dim, self.theta)

    def rope_parameters(self, theta: float, native_window: int) -> dict[str, Any]:
        """What transformers 5 keeps in `config.rope_parameters`; `theta` is replaced."""
        del theta, native_window
        return {"rope_type": "default", "rope_theta": self.theta}


RopeScaling = Annotated[LinearScaling | BaseFrequencyScaling, Field(discriminator="type")]
