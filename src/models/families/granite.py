"""Granite 3: LLaMA with factors on embeddings, sublayers, attention scores and logits."""

from __future__ import annotations

from src.models.families.base import Family

FAMILY = Family(
    "granite",
    model_type="granite",
    random_config={"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    llama_operators=False,
)
