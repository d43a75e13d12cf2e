"""Answers to texts, as tests ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from src.evals.generation import continued, encode
from src.progress import meter


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    rooms: Sequence[int],
    window: int,
    **options: Any,
) -> list[str]:
    """The answers to prompts that fit the window, in their order."""
    encoded = encode(tokenizer, prompts, window=window, room=rooms)
    with meter("generating", len(prompts)) as progress:
        return continued(model, tokenizer, encoded, rooms, progress=progress, **options)
