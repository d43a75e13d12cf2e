"""Plain facts about a model, for code that must not know what a model is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFacts:
    """What an objective may know about a model: its layers, each layer's window, and its heads."""

    layers: int
    windows: tuple[int | None, ...]
    heads: int
    kv_heads: int
    head_dim: int
