"""Mistral: LLaMA with a sliding window in all layers, or (later versions) none."""

from __future__ import annotations

from src.models.families.base import Family

# Its config class has a window by default.
FAMILY = Family("mistral", model_type="mistral", random_config={"sliding_window": None})
