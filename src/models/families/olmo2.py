"""OLMo-2: norms after attention and MLP in place of those before, and on all queries and keys.

Queries have one norm over all heads together, before RoPE, and so have keys (2501.00656).
"""

from __future__ import annotations

from src.models.families.base import Family, LayerParts

FAMILY = Family(
    "olmo2",
    model_type="olmo2",
    parts=LayerParts(
        None, "self_attn", ("post_attention_layernorm", "mlp", "post_feedforward_layernorm")
    ),
    qk_norm="wide",
    llama_operators=False,
)
