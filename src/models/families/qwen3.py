"""Qwen3: LLaMA with a norm on each head's queries and keys, before RoPE."""

from __future__ import annotations

from src.models.families.base import Family

FAMILY = Family("qwen3", model_type="qwen3", qk_norm=True, layer_types=True)
