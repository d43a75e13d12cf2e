"""An explicit table of factors, one for each pair of dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from src.models.rope.base import NativeRope, Positive, Scaling, checked_table, longrope_tables


@dataclass(frozen=True)
class PerFrequencyScaling(Scaling):
    """Each pair's frequency is divided by its own factor, at every length.

    Attributes:
        factors: head_dim / 2 numbers, for the fastest pair first.
    """

    type: Literal["per_frequency"]
    factors: Annotated[tuple[Positive, ...], Field(min_length=1)]

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        factors = checked_table("factors", self.factors, native)
        return native.inverse_frequencies(length=length) / factors

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """`longrope` with the same table at every length and an attention factor of 1.

        The target as original length makes both so for vLLM as well, which works its attention
        factor out from max_position_embeddings / original_max_position_embeddings.
        """
        table = checked_table("factors", self.factors, native).tolist()
        target = self.target_length
        return longrope_tables(native.theta, target, target, table, list(table), 1.0)


SCALING = PerFrequencyScaling
