"""What the installed transformers makes of exported folders; run with any version of it.

    python transformers_reader.py '{"folders": [DIR, ...], "lengths": [N, ...], "out": FILE}'

It imports nothing of this project, so that it runs in an environment of another version. It writes
a `.npz` file: for each folder by its number `frequencies/N/LENGTH`, `attention/N/LENGTH` and
`logits/N/LENGTH` of the ids `(7 i + 3) mod 250` (float32, the whole sequence), and `window/N`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

FULL = "full_attention"


def rope(network: Any, length: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor of full-attention layers after this length."""
    rotary = network.model.rotary_emb
    nested = hasattr(rotary, f"{FULL}_inv_freq")
    options = {"layer_type": FULL} if nested else {}
    rotary(torch.zeros(1, 1, 1), torch.arange(length)[None], **options)
    prefix = f"{FULL}_" if nested else ""
    scaling = getattr(rotary, f"{prefix}attention_scaling")
    return getattr(rotary, f"{prefix}inv_freq").double().numpy(), float(scaling)


def main() -> None:
    """Read every folder at every length."""
    asked = json.loads(sys.argv[1])
    found: dict[str, Any] = {"version": np.array(transformers.__version__)}
    for number, folder in enumerate(asked["folders"]):
        AutoTokenizer.from_pretrained(folder)
        network: Any = AutoModelForCausalLM.from_pretrained(folder).float().eval()
        found[f"window/{number}"] = np.array(network.config.max_position_embeddings)
        for length in asked["lengths"]:
            frequencies, attention = rope(network, length)
            ids = (7 * torch.arange(length) + 3) % 250
            with torch.no_grad():
                logits = network(input_ids=ids[None]).logits[0].float().numpy()
            key = f"{number}/{length}"
            found[f"frequencies/{key}"] = frequencies
            found[f"attention/{key}"] = np.array(attention)
            found[f"logits/{key}"] = logits
    np.savez(asked["out"], **found)


if __name__ == "__main__":
    main()
