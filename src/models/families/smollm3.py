"""SmolLM3: LLaMA with RoPE in three layers of four; the fourth has no positions (2501.18795)."""

from __future__ import annotations

from src.models.families.base import Family

FAMILY = Family(
    "smollm3",
    model_type="smollm3",
    layer_types=True,
    # A model with fewer than four layers would have RoPE in all of them.
    random_config={"no_rope_layer_interval": 2},
    llama_operators=False,
)
