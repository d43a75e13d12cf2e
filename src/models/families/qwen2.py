"""Qwen2 and Qwen2.5: LLaMA with biases on q, k and v."""

from __future__ import annotations

from src.models.families.base import Family

FAMILY = Family("qwen2", model_type="qwen2", qkv_bias=True, layer_types=True)
