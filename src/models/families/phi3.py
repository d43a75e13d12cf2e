"""Phi-3: LLaMA with q, k and v in one linear layer, and gate and up in one (2404.14219)."""

from __future__ import annotations

from src.models.families.base import Family, LayerParts

FAMILY = Family(
    "phi3",
    model_type="phi3",
    parts=LayerParts(
        "input_layernorm",
        "self_attn",
        ("resid_attn_dropout", "post_attention_layernorm", "mlp", "resid_mlp_dropout"),
    ),
    projections=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    fused={
        "q_proj": "qkv_proj",
        "k_proj": "qkv_proj",
        "v_proj": "qkv_proj",
        "gate_proj": "gate_up_proj",
        "up_proj": "gate_up_proj",
    },
    tables_only=True,
    llama_operators=False,
)
