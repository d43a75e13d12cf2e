"""What methods and scalings are called in papers. A name that is not listed stands for itself."""

from __future__ import annotations

METHODS = {
    "linearard": "LinearARD",
    "longred_cream": "LongReD-C",
    "longred_uniform": "LongReD-U",
    "cpt_long": "Long-CPT",
    "cpt_mix": "Mix-CPT",
    "logit_kd": "Logit KD",
}
"""By the recipe's name, in the order of their colours."""

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
    """`longred_cream` -> `LongReD-C`."""
    return METHODS.get(method, method)


def scaling_name(rope: str, factor: float | None) -> str:
    """`yarn`, 4 -> `YaRN x4`."""
    name = _SCALINGS.get(rope, rope)
    return f"{name} x{factor:g}" if name and factor else name


def model_name(model: str, *, is_random: bool) -> str:
    """The model, marked where its weights are random: then its scores mean nothing."""
    return f"{model} (random weights)" if is_random else model
