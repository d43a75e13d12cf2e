"""Granite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from src.models.families.granite import FAMILY


def test_facts(check_family: Callable[..., Any]) -> None:
    check_family(FAMILY, "tiny_granite")
