"""The base classes of all scalings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class NativeRope:
    """A model's unscaled RoPE.

    Attributes:
        head_dim: dimensions that are rotated, in pairs: all of a head's.
        theta: the base frequency of the layers that are scaled.
        window: the length in tokens that the model was trained at.
        by_layer_type: whether each kind of layer has its own RoPE (Gemma 3); only that of the
            full-attention layers is scaled.
    """

    head_dim: int
    theta: float
    window: int
    by_layer_type: bool = False

    def inverse_frequencies(self, theta: float | None = None) -> np.ndarray:
        """theta ** (-2 i / head_dim) for i in [0, head_dim / 2) (Su et al., 2104.09864).

        Returns a float64 array of shape [head_dim / 2], in radians a token.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        return (self.theta if theta is None else theta) ** -exponents


@dataclass(frozen=True)
class Scaling:
    """A scaling with its type and the length of the extended window, in tokens."""

    type: str
    target_length: Annotated[int, Field(gt=0)]

    def resolved_factor(self, native_window: int) -> float:
        """How many times longer the extended window is.

        Raises:
            ValueError: the target is shorter than the native window.
        """
        if self.target_length < native_window:
            raise ValueError(
                f"rope.target_length is {self.target_length}, below the model's native window of "
                f"{native_window} tokens: a scaling extends the window, so give at least that"
            )
        return self.target_length / native_window

    def inverse_frequencies(self, native: NativeRope, length: int | None = None) -> np.ndarray:
        """Scaled inverse frequencies, float64 [head_dim / 2], in radians a token.

        Args:
            native: the model's unscaled RoPE.
            length: of the sequence, in tokens (its largest position + 1), by default
                `target_length`. Most scalings do not depend on it.

        Raises:
            ValueError: the fields do not fit the model.
        """
        raise NotImplementedError

    def resolved_attention_factor(self, native: NativeRope) -> float:
        """The factor on rotated queries, and on rotated keys."""
        del native
        return 1.0

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """The value of `config.rope_parameters` in transformers 5.

        Raises:
            ValueError: the fields do not fit the model.
        """
        raise NotImplementedError

    def max_position_embeddings(self, native: NativeRope) -> int:
        """The value of `config.max_position_embeddings` in transformers 5."""
        del native
        return self.target_length

    def multiplied_length(self, native: NativeRope) -> int | None:
        """The length that inference servers multiply by the factor in `rope_parameters`.

        vLLM does so for some types, to find the window. None if `max_position_embeddings` alone
        gives the target.
        """
        del native
        return None

    def is_native_at(self, native: NativeRope, length: int) -> bool:
        """Whether a sequence of `length` tokens is rotated as in the unscaled model.

        A student then has nothing to learn from its teacher.
        """
        return self.resolved_attention_factor(native) == 1.0 and np.allclose(
            self.inverse_frequencies(native, length), native.inverse_frequencies(), rtol=1e-9
        )


@dataclass(frozen=True)
class FactorScaling(Scaling):
    """A scaling by a factor, which follows from the target unless it is set."""

    factor: Annotated[float, Field(ge=1)] | None = None

    def resolved_factor(self, native_window: int) -> float:
        """The factor in the settings, or else target_length / native_window.

        Raises:
            ValueError: the target is shorter than the native window.
        """
        needed = super().resolved_factor(native_window)
        # vLLM refuses an integer.
        return needed if self.factor is None else float(self.factor)

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """The type with its factor, as transformers names both."""
        return {
            "rope_type": self.type,
            "factor": self.resolved_factor(native.window),
            "rope_theta": native.theta,
        }


def checked_table(name: str, table: tuple[float, ...], native: NativeRope) -> np.ndarray:
    """A table of one factor for each pair of dimensions, as float64 [head_dim / 2].

    Raises:
        ValueError: it has another length.
    """
    pairs = native.head_dim // 2
    if len(table) != pairs:
        raise ValueError(
            f"rope.{name} has {len(table)} factors, but the model's heads of {native.head_dim} "
            f"dimensions rotate {pairs} pairs: give {pairs}, for the fastest pair first"
        )
    return np.array(table, dtype=np.float64)
