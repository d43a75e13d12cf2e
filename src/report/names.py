"""What methods and scalings are called in papers. A name that is not listed stands for itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

METHODS = {
    "linearard": "LinearARD",
    "longred_cream": "LongReD-C",
    "longred_uniform": "LongReD-U",
    "cpt_long": "Long-CPT",
    "cpt_mix": "Mix-CPT",
    "logit_kd": "Logit KD",
    "restore_mix": "Restore-Mix",
    "restore_skip": "Restore-Skip",
    "restore_after_cpt": "CPT then restore",
    "restore_replay": "CPT with replay",
    "restore_gentle": "Gentle LinearARD",
    "restore_window": "CPT with relations",
    "restore_longce": "LongCE",
    "restore_copy": "Restore-Copy",
    "restore_short": "Restore-Short",
    "restore_repeat": "CPT with repeats",
}
"""By the recipe's name, in the order of their colours."""

MERGED = "+merge"
"""Behind a recipe's name: a stage of the run merged its weights with the native ones."""

_SCALINGS = {
    "linear": "linear",
    "abf": "ABF",
    "ntk": "NTK",
    "yarn": "YaRN",
    "llama3": "Llama 3",
    "longrope": "LongRoPE",
    "per_frequency": "per frequency",
}


def method_name(method: str) -> str:
    """`longred_cream` -> `LongReD-C`; `cpt_long+merge` -> `Long-CPT, merged`."""
    recipe = method.removesuffix(MERGED)
    return METHODS.get(recipe, recipe) + (", merged" if method.endswith(MERGED) else "")


def scaling_name(rope: str, factor: float | None) -> str:
    """`yarn`, 4 -> `YaRN x4`."""
    name = _SCALINGS.get(rope, rope)
    return f"{name} x{factor:g}" if name and factor else name


def short_models(models: Collection[str]) -> dict[str, str]:
    """A short name for each of these models: the hash of its weights stays only where two differ.

    `own@1a2b3c4d` -> `own`, or `own (weights 1a2b3c4d)` beside another `own`. See `identity` in
    `src/models/sources.py`.
    """
    matches = {model: re.fullmatch(r"(.+)@([0-9a-f]{8})", model) for model in set(models)}
    shared = Counter(hashed[1] if hashed else model for model, hashed in matches.items())
    return {
        model: model
        if not hashed
        else hashed[1]
        if shared[hashed[1]] == 1
        else f"{hashed[1]} (weights {hashed[2]})"
        for model, hashed in matches.items()
    }
