"""Dynamic NTK scaling (emozilla, 2023; section 3.3 of YaRN, Peng et al., 2309.00071)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.models.rope.base import FactorScaling, NativeRope
from src.models.rope.ntk import stretched_theta


@dataclass(frozen=True)
class DynamicScaling(FactorScaling):
    """NTK-aware, with a factor that grows with the sequence: factor * length / window - factor + 1.

    Up to the native window nothing is scaled: a student equals its teacher there, so distillation
    of short text has nothing to restore. At the target the factor is larger than target / window.
    """

    type: Literal["dynamic"]

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        tokens = max(length or self.target_length, native.window)
        factor = self.resolved_factor(native.window)
        grown = factor * tokens / native.window - (factor - 1)
        return native.inverse_frequencies(stretched_theta(native, grown), length)

    def exported(self, native: NativeRope) -> dict[str, Any]:
        """`dynamic`, which transformers applies to unscaled RoPE only.

        Raises:
            ValueError: the model's own RoPE is scaled.
        """
        base = self.base(native)
        if base.scaling is not None or base.tables_only:
            kind = base.scaling.type if base.scaling else "stated as tables"
            raise ValueError(
                f"rope.type=dynamic: the model's own RoPE is {kind}, and a config cannot state a "
                "scaling of it that grows with the sequence: use another scaling, or "
                "rope.on_scaled=replace where the model's class takes it"
            )
        return super().exported(native)

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """`dynamic`; `max_trained_positions` is for vLLM, transformers ignores it."""
        return super().rope_parameters(native) | {"max_trained_positions": native.window}

    def multiplied_length(self, native: NativeRope) -> int:
        """The native window divided by the factor, rounded down.

        vLLM 0.33 (unlike 0.20) has rotations for `max_position_embeddings` tokens only, which must
        be the native window for transformers. So without `vllm_overrides` it serves that window.
        """
        return max(1, math.floor(native.window / self.resolved_factor(native.window)))

    def vllm_overrides(self, native: NativeRope) -> dict[str, int]:
        """The target, and what vLLM multiplies by the factor to get it."""
        overrides = {"max_position_embeddings": self.target_length}
        # vLLM multiplies no length where each kind of layer has a RoPE of its own (Gemma 3).
        if not native.by_layer_type:
            overrides["max_seq_len"] = self.divided_target(native)
        return overrides

    def max_position_embeddings(self, native: NativeRope) -> int:
        """The native window: transformers measures the sequence's length against it."""
        return native.window


SCALING = DynamicScaling
