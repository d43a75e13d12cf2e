"""The oldest transformers that reads an export (measured: docs/exports.md)."""

from __future__ import annotations

# The oldest of the tried versions (4.43, 4.45, 4.46, 4.48, 4.51, 4.53, 4.57) from which on logits
# beyond the native window equal those of version 5: by family, and by the type of rope_parameters.
# yarn took its original length from another key before 4.51; 4.48 read longrope wrongly.
OLDEST_BY_FAMILY = {
    "llama": "4.43",
    "qwen2": "4.45",
    "mistral": "4.48",
    "qwen3": "4.51",
    "gemma3": "4.53",
}
OLDEST_BY_ROPE = {
    "default": "4.43",
    "linear": "4.43",
    "dynamic": "4.43",
    "llama3": "4.43",
    "longrope": "4.51",
    "yarn": "4.51",
}
# Of families and scalings that were not tried with older ones.
_TRIED = "4.57"


def oldest_transformers(family: str, rope_type: str) -> str:
    """The oldest version that is known to read an export, such as 4.57."""
    needed = (OLDEST_BY_ROPE.get(rope_type, _TRIED), OLDEST_BY_FAMILY.get(family, _TRIED))
    return max(needed, key=lambda version: tuple(map(int, version.split("."))))
