"""The RoPE that the student's own checkpoint states: it is extended already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.models.rope.base import NativeRope, Scaling
from src.models.rope.native import scaling_of


@dataclass(frozen=True)
class OwnScaling(Scaling):
    """The RoPE of `student.weights`, as its config states it. It is never composed.

    Attributes:
        parameters: `rope_parameters` of that config; they and the target are filled in from there.
    """

    type: Literal["own"]
    parameters: dict[str, Any]

    def base(self, native: NativeRope) -> NativeRope:
        return native.unscaled()

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        return self._rope(native).inverse_frequencies(length=length or self.target_length)

    def resolved_attention_factor(self, native: NativeRope) -> float:
        return self._rope(native).attention_factor

    def changes_at(self, native: NativeRope) -> int | None:
        return self._rope(native).changes_at()

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        return dict(self.parameters)

    def _rope(self, native: NativeRope) -> NativeRope:
        scaling, original = scaling_of(self.parameters, self.target_length) or (None, None)
        theta = float(self.parameters["rope_theta"])
        return NativeRope(
            native.head_dim, theta, self.target_length, scaling=scaling, original_window=original
        )


SCALING = OwnScaling
