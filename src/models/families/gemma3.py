"""Gemma 3, text: sliding and full-attention layers; each kind has its own RoPE.

Five of six layers have a sliding window. Queries and keys have a norm, each sublayer has one before
and one after it, and scores are scaled by query_pre_attn_scalar ** -0.5 (report: 2503.19786).
"""

from __future__ import annotations

from src.models.families.base import Family, LayerParts

FAMILY = Family(
    "gemma3",
    model_type="gemma3_text",
    parts=LayerParts(
        "input_layernorm",
        "self_attn",
        (
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "mlp",
            "post_feedforward_layernorm",
        ),
    ),
    norms=4,
    qk_norm=True,
    layer_types=True,
    rope_by_layer_type=True,
    length_is_scaled=True,
    llama_operators=False,
)
