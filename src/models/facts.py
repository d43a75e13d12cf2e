"""Plain facts about a model, for code that must not import transformers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that an objective may know.

    Attributes:
        windows: of each layer: a query at i sees keys j with i - j < window; None: all before it.
        scale: factor on attention scores; None for the usual head_dim ** -0.5.
    """

    layers: int
    windows: tuple[int | None, ...]
    heads: int
    kv_heads: int
    head_dim: int
    scale: float | None = None
