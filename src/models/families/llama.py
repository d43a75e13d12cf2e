"""LLaMA 1 to 3, and models with its code, such as SmolLM2."""

from __future__ import annotations

from src.models.families.base import Family

FAMILY = Family("llama", model_type="llama")
