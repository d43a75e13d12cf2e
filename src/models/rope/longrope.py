"""LongRoPE (Ding et al., 2402.13753), as Phi-3 uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.models.rope.base import (
    FactorScaling,
    NativeRope,
    Positive,
    checked_table,
    longrope_attention,
    longrope_tables,
)


@dataclass(frozen=True)
class LongRopeScaling(FactorScaling):
    """A factor for each pair: one table up to the native window, another one beyond it.

    The tables come from a published search that this program does not run. By default short
    sequences are not scaled, and long ones have the same factor in all pairs, which is where that
    search starts. The length of each sequence selects the table, so short text trains the model
    with the short table.

    Attributes:
        short_factors, long_factors: head_dim / 2 numbers that frequencies are divided by.
        attention_factor: the factor on queries, and on keys, at any length; by default
            sqrt(1 + ln(factor) / ln(window)).
    """

    type: Literal["longrope"]
    short_factors: tuple[Positive, ...] | None = None
    long_factors: tuple[Positive, ...] | None = None
    attention_factor: Positive | None = None

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        short, long = self._tables(native)
        table = long if (length or self.target_length) > native.window else short
        return native.inverse_frequencies(length=length) / table

    def changes_at(self, native: NativeRope) -> int:
        return native.window

    def resolved_attention_factor(self, native: NativeRope) -> float:
        """As given, or as the paper has it."""
        if self.attention_factor is not None:
            return float(self.attention_factor)
        return longrope_attention(self.resolved_factor(native.window), native.window)

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        short, long = (table.tolist() for table in self._tables(native))
        attention = self.resolved_attention_factor(native)
        stated = longrope_tables(
            native.theta, native.window, self.target_length, short, long, attention
        )
        return stated | {"factor": self.resolved_factor(native.window)}

    def _tables(self, native: NativeRope) -> tuple[np.ndarray, np.ndarray]:
        pairs = native.head_dim // 2
        short, long = np.ones(pairs), np.full(pairs, self.resolved_factor(native.window))
        if self.short_factors is not None:
            short = checked_table("short_factors", self.short_factors, native)
        if self.long_factors is not None:
            long = checked_table("long_factors", self.long_factors, native)
        return short, long


SCALING = LongRopeScaling
