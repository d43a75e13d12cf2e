"""RoPE in a GGUF file, as llama.cpp reads it.

llama.cpp knows a base frequency, position interpolation and YaRN for all architectures. For its
architecture `llama` it also reads tables of one factor a pair, which frequencies are divided by:
one for all lengths (`rope_freqs`), or two, of which the context's size selects one. It knows no
scaling that grows with the sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from src.models.rope import NativeRope, RopeScaling

# llama.cpp's own, which files of these architectures cannot change.
_BETA_FAST, _BETA_SLOW = 32.0, 1.0
# Of frequencies; files hold float32.
_TOLERANCE = 1e-6
# Architectures that read tables.
TABLES = ("llama",)


@dataclass(frozen=True)
class GgufRope:
    """What a GGUF file says of RoPE.

    Attributes:
        base: `rope.freq_base`.
        kind: `rope.scaling.type`.
        factor: `rope.scaling.factor`.
        original: `rope.scaling.original_context_length`, in tokens.
        attention: `rope.scaling.attn_factor`: a factor on queries, and on keys, beside YaRN's own.
        table: the tensor `rope_freqs`, [head_dim / 2].
        short, long: the tensors `rope_factors_short` and `rope_factors_long`, [head_dim / 2].
    """

    base: float
    kind: Literal["none", "linear", "yarn", "longrope"] = "none"
    factor: float = 1.0
    original: int | None = None
    attention: float = 1.0
    table: np.ndarray | None = None
    short: np.ndarray | None = None
    long: np.ndarray | None = None

    def frequencies(self, head_dim: int, context: int) -> np.ndarray:
        """Inverse frequencies that llama.cpp rotates by, float64 [head_dim / 2].

        Args:
            context: size of the context that llama.cpp is started with, in tokens.
        """
        plain = NativeRope(head_dim, self.base, context).inverse_frequencies()
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "yarn":
            assert self.original is not None
            return plain * _yarn_shares(head_dim, self.base, self.original, self.factor)
        if self.table is not None:
            return plain / self.table
        if self.long is not None and self.short is not None:
            assert self.original is not None
            return plain / (self.long if context > self.original else self.short)
        return plain

    def attention_factor(self) -> float:
        """The factor on rotated queries, and on rotated keys."""
        return self.attention * (_sharpness(self.factor) if self.kind == "yarn" else 1.0)


def _sharpness(factor: float) -> float:
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_shares(head_dim: int, base: float, original: int, factor: float) -> np.ndarray:
    """What llama.cpp's YaRN multiplies each pair's frequency by."""

    def pair(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0, math.floor(pair(_BETA_FAST)))
    high = min(head_dim - 1, math.ceil(pair(_BETA_SLOW)))
    pairs = np.arange(head_dim // 2)
    interpolated = np.clip((pairs - low) / max(0.001, high - low), 0, 1)
    return 1 - interpolated + interpolated / factor


def gguf_rope(scaling: RopeScaling, native: NativeRope, architecture: str) -> GgufRope:
    """The entries of a GGUF file for a scaling: the first form that llama.cpp reads as it is meant.

    Raises:
        ValueError: there is none for this architecture.
    """
    parameters = scaling.rope_parameters(native)
    for form in _forms(scaling, native, parameters):
        tables = form.table is not None or form.long is not None
        if tables and architecture not in TABLES:
            continue
        sliding = native.by_layer_type and form.attention != 1.0
        if not sliding and _means(form, scaling, native):
            return form
    why = "llama.cpp has no scaling that grows with the sequence"
    if scaling.type != "dynamic":
        why = (
            f"llama.cpp's architecture {architecture!r} reads no table of factors, and no other "
            "form of a GGUF file says what this scaling says"
        )
        if native.by_layer_type:
            why += " without changing the sliding layers"
    raise ValueError(
        f"export.gguf=true cannot hold rope.type={scaling.type}: {why}; allowed: linear, abf, ntk, "
        "or yarn with its own defaults; or leave export.gguf out"
    )


def _forms(scaling: RopeScaling, native: NativeRope, parameters: dict[str, Any]) -> list[GgufRope]:
    """Forms that may say what the scaling says."""
    base, kind = float(parameters["rope_theta"]), parameters["rope_type"]
    attention = scaling.resolved_attention_factor(native)
    if kind == "dynamic":
        return []
    if kind == "linear":
        return [GgufRope(base, "linear", float(parameters["factor"]))]
    plain = NativeRope(native.head_dim, base, native.window).inverse_frequencies()
    long = plain / scaling.inverse_frequencies(native)
    short = plain / scaling.inverse_frequencies(native, 1)
    forms = [GgufRope(base, attention=attention)]
    if kind == "yarn":
        factor = float(parameters["factor"])
        original = int(parameters["original_max_position_embeddings"])
        beside = attention / _sharpness(factor)
        beside = 1.0 if math.isclose(beside, 1.0, rel_tol=1e-12) else beside
        forms.append(GgufRope(base, "yarn", factor, original, beside))
    if np.array_equal(short, long):
        forms.append(GgufRope(base, attention=attention, table=long))
    else:
        forms.append(
            GgufRope(
                base,
                "longrope",
                original=native.window,
                attention=attention,
                short=short,
                long=long,
            )
        )
    return forms


def _means(form: GgufRope, scaling: RopeScaling, native: NativeRope) -> bool:
    """Whether llama.cpp reads the form as the scaling is meant, within and beyond the window."""
    attention = scaling.resolved_attention_factor(native)
    return math.isclose(form.attention_factor(), attention, rel_tol=_TOLERANCE) and all(
        np.allclose(
            form.frequencies(native.head_dim, length),
            scaling.inverse_frequencies(native, length),
            rtol=_TOLERANCE,
            atol=0,
        )
        for length in (native.window, scaling.target_length)
    )
