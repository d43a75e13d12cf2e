"""Keys of an exported folder that transformers 4 reads, beside those of transformers 5.

transformers 5 keeps a model's RoPE in `rope_parameters`. Version 4, and programs that follow it,
read `rope_scaling` and `rope_theta`, and take unscaled RoPE of base 10,000 without them. It also
knows neither the name of version 5's tokenizer class nor its list of special tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.models.rope.longrope import longrope_attention
from src.models.shapes import FULL, SLIDING
from src.run_folder import write_json

# Parameters that version 4 reads outside `rope_scaling`.
_OUTSIDE = ("rope_theta", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"
# What version 5 notes about the folder that a tokenizer was loaded from.
_LOCAL = ("backend", "is_local", "local_files_only")


def rope_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json of transformers 4 that say what `rope_parameters` of 5 says.

    `rope_scaling` is null for unscaled RoPE. With a RoPE for each kind of layer it describes the
    full-attention layers, and `rope_local_base_freq` is the base of the sliding ones. longrope's
    original length stands outside `rope_scaling`: version 4 compares a sequence's length with it
    there only.
    """
    parameters = config["rope_parameters"]
    rope = parameters.get(FULL, parameters)
    keys: dict[str, Any] = {name: rope[name] for name in _OUTSIDE if name in rope}
    if FULL in parameters:
        keys["rope_local_base_freq"] = parameters[SLIDING]["rope_theta"]
    kind = rope["rope_type"]
    inside = {name: value for name, value in rope.items() if name not in _OUTSIDE}
    keys["rope_scaling"] = None if kind == "default" else inside
    if kind == "longrope":
        keys[_ORIGINAL] = rope[_ORIGINAL]
        if config["model_type"] == "phi3" and _by_default(rope, config):
            # Phi-3's class in version 4 takes these three only, and would refuse more.
            tables = {name: rope[name] for name in ("short_factor", "long_factor")}
            keys["rope_scaling"] = {"type": kind, **tables}
    return keys


def _by_default(rope: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether longrope's attention factor is the one that its readers work out themselves."""
    factor = config["max_position_embeddings"] / rope[_ORIGINAL]
    expected = longrope_attention(factor, rope[_ORIGINAL])
    return math.isclose(rope.get("attention_factor", expected), expected, rel_tol=1e-9)


def tokenizer_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json that versions 4 and 5 both read, from one of version 5."""
    keys = {name: value for name, value in config.items() if name not in _LOCAL}
    if keys.get("tokenizer_class") == "TokenizersBackend":
        keys["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(keys.get("extra_special_tokens"), list):
        keys["additional_special_tokens"] = keys.pop("extra_special_tokens")
    return keys


def add_legacy_keys(folder: Path) -> None:
    """Rewrite config.json and tokenizer_config.json of an export, so that version 4 reads them."""
    for name, keys in (
        ("config.json", lambda config: config | rope_keys(config)),
        ("tokenizer_config.json", tokenizer_keys),
    ):
        file = folder / name
        write_json(file, keys(json.loads(file.read_text(encoding="utf-8"))))
