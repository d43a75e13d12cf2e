"""Gemma 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from src.models.families.gemma3 import FAMILY


def test_facts(check_family: Callable[..., Any]) -> None:
    network = check_family(FAMILY, "tiny_gemma3")
    rotary = network.get_decoder().rotary_emb
    assert rotary.full_attention_inv_freq[1] != rotary.sliding_attention_inv_freq[1]
