"""The base classes of all scalings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class NativeRope:
    """A model's own RoPE, which may be scaled already (LLaMA 3.1).

    Attributes:
        head_dim: dimensions that are rotated, in pairs: all of a head's, or the first ones.
        theta: the base frequency of the layers that are scaled.
        window: the length in tokens that the model was trained at.
        by_layer_type: whether each kind of layer has its own RoPE (Gemma 3). Only the RoPE of the
            full-attention layers is scaled.
        original_window: the window before that scaling.
        tables_only: whether the model's class reads no scaling but `longrope` (Phi-3).
    """

    head_dim: int
    theta: float
    window: int
    by_layer_type: bool = False
    scaling: Scaling | None = None
    original_window: int | None = None
    tables_only: bool = False

    def inverse_frequencies(
        self, theta: float | None = None, length: int | None = None
    ) -> np.ndarray:
        """theta ** (-2 i / head_dim) for i in [0, head_dim / 2) (Su et al., 2104.09864).

        Those of a scaled RoPE are divided by the factors of its scaling.

        Args:
            theta: another base than the model's own.
            length: of the sequence in tokens, by default the window; only longrope depends on it.

        Returns a float64 array of shape [head_dim / 2], in radians a token.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        plain = (self.theta if theta is None else theta) ** -exponents
        if self.scaling is None:
            return plain
        scaled = self.scaling.inverse_frequencies(self.unscaled(), length or self.window)
        return plain * scaled / self.theta**-exponents

    @property
    def attention_factor(self) -> float:
        """The factor on rotated queries, and on rotated keys, of the model itself."""
        scaling = self.scaling
        return 1.0 if scaling is None else scaling.resolved_attention_factor(self.unscaled())

    def unscaled(self) -> NativeRope:
        """The RoPE that the model had before its own scaling, with the window it had then."""
        if self.scaling is None:
            return self
        window = self.original_window or self.window
        return replace(self, window=window, scaling=None, original_window=None)

    def changes_at(self) -> int | None:
        """The length above which the frequencies are others; None if they never change."""
        return None if self.scaling is None else self.scaling.changes_at(self.unscaled())

    def pair_of(self, turns: float) -> float:
        """The pair that turns so often within the window, from 0, between two pairs as a fraction.

        Pairs beyond the fastest and the slowest are those of an unscaled RoPE.
        """
        wanted = math.log(2 * math.pi * turns / self.window)
        step = 2 * math.log(self.theta) / self.head_dim
        if self.scaling is None:
            return -wanted / step
        # Tables of a search may not fall from pair to pair.
        logs = np.minimum.accumulate(np.log(self.inverse_frequencies()))
        if wanted > logs[0]:
            return float((logs[0] - wanted) / step)
        if wanted < logs[-1]:
            return float(len(logs) - 1 + (logs[-1] - wanted) / step)
        return float(np.interp(-wanted, -logs, np.arange(len(logs))))


@dataclass(frozen=True)
class Scaling:
    """A scaling with its type and the length of the extended window, in tokens.

    Attributes:
        on_scaled: for a model whose own RoPE is scaled: `compose` scales that RoPE further, from
            the model's window; `replace` scales the RoPE without it, from the original window.
    """

    type: str
    target_length: Annotated[int, Field(gt=0, le=2**30)]
    on_scaled: Literal["compose", "replace"] = field(default="compose", kw_only=True)

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
            native: the RoPE that is scaled (`base`).
            length: of the sequence, in tokens (its largest position + 1), by default
                `target_length`. Most scalings do not depend on it.

        Raises:
            ValueError: the fields do not fit the model.
        """
        raise NotImplementedError

    def resolved_attention_factor(self, native: NativeRope) -> float:
        """The factor that the scaling puts on rotated queries, and on rotated keys."""
        return 1.0

    def changes_at(self, native: NativeRope) -> int | None:
        """The length above which the frequencies are others; None if they never change."""
        return None

    def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
        """The value of `config.rope_parameters` in transformers 5, for an unscaled native RoPE.

        Raises:
            ValueError: the fields do not fit the model.
        """
        raise NotImplementedError

    def max_position_embeddings(self, native: NativeRope) -> int:
        """The value of `config.max_position_embeddings` in transformers 5."""
        return self.target_length

    def multiplied_length(self, native: NativeRope) -> int | None:
        """The length that inference servers multiply by the factor in `rope_parameters`.

        vLLM does so for some types, to find the window. None if `max_position_embeddings` alone
        gives the target.
        """
        return None

    def vllm_overrides(self, native: NativeRope) -> dict[str, int]:
        """Keys of the config that vLLM must read otherwise than transformers, to serve the target.

        They are values of its `--hf-overrides`.
        """
        return {}

    def base(self, native: NativeRope) -> NativeRope:
        """The RoPE that this scaling scales, of a model with `native`."""
        return native if self.on_scaled == "compose" else native.unscaled()

    def total_attention_factor(self, native: NativeRope) -> float:
        """The factor on rotated queries, and on rotated keys, of the scaled model."""
        base = self.base(native)
        return base.attention_factor * self.resolved_attention_factor(base)

    def exported(self, native: NativeRope) -> dict[str, Any]:
        """The value of `config.rope_parameters` in transformers 5.

        A scaling of a scaled RoPE has no type of its own there, and some models' classes read no
        other types. It is then written as `longrope`, whose tables can hold any factors.

        Raises:
            ValueError: the fields do not fit the model, or the two scalings together cannot be
                written so.
        """
        base = self.base(native)
        parameters = self.rope_parameters(base)
        if base.scaling is None and not (
            base.tables_only and parameters["rope_type"] not in ("default", "longrope")
        ):
            return parameters
        borders = (self.changes_at(base), base.changes_at())
        edges = {edge for edge in borders if edge is not None}
        if len(edges) > 1:
            assert base.scaling is not None
            raise ValueError(
                f"rope.type={self.type}: on a model whose own RoPE is {base.scaling.type} the "
                f"frequencies would change at {' and '.join(map(str, sorted(edges)))} "
                "tokens, and a config can state one such length: use another scaling, or "
                "rope.on_scaled=replace"
            )
        edge = edges.pop() if edges else self.target_length
        plain = base.unscaled().inverse_frequencies()
        short, long = (
            (plain / self.inverse_frequencies(base, length)).tolist()
            for length in (edge, self.target_length)
        )
        return longrope_tables(
            base.theta, edge, self.target_length, short, long, self.total_attention_factor(native)
        )

    def is_native_at(self, native: NativeRope, length: int) -> bool:
        """Whether a sequence of `length` tokens is rotated as in the model itself.

        A student then has nothing to learn from its teacher.
        """
        ours = self.inverse_frequencies(self.base(native), length)
        theirs = native.inverse_frequencies(length=length)
        return math.isclose(
            self.total_attention_factor(native), native.attention_factor, rel_tol=1e-9
        ) and np.allclose(ours, theirs, rtol=1e-9)


@dataclass(frozen=True)
class FactorScaling(Scaling):
    """A scaling by a factor, which follows from the target unless it is set."""

    factor: Annotated[float, Field(ge=1, le=2**20)] | None = None

    def resolved_factor(self, native_window: int) -> float:
        """The factor in the settings, or else target_length / native_window.

        Raises:
            ValueError: the target is shorter than the native window.
        """
        needed = super().resolved_factor(native_window)
        # vLLM refuses an integer.
        return needed if self.factor is None else float(self.factor)

    def divided_target(self, native: NativeRope) -> int:
        """The smallest length whose product with the factor, rounded down, reaches the target."""
        factor = self.resolved_factor(native.window)
        length = math.floor(self.target_length / factor)
        while int(length * factor) < self.target_length:
            length += 1
        return length

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


def longrope_attention(factor: float, window: int) -> float:
    """The paper's attention factor for a window that becomes `factor` times longer."""
    return math.sqrt(1 + math.log(factor) / math.log(window)) if factor > 1 else 1.0


def longrope_tables(
    theta: float, edge: int, target: int, short: list[float], long: list[float], attention: float
) -> dict[str, Any]:
    """`longrope` of transformers 5 with one table up to `edge` tokens and another beyond.

    `short_mscale` and `long_mscale` are for vLLM, which knows no `attention_factor`; transformers
    ignores them.
    """
    parameters = {
        "rope_type": "longrope",
        "factor": target / edge,
        "rope_theta": theta,
        "original_max_position_embeddings": edge,
        "short_factor": short,
        "long_factor": long,
        "attention_factor": attention,
    }
    if attention != longrope_attention(target / edge, edge):
        parameters |= {"short_mscale": attention, "long_mscale": attention}
    return parameters
