"""What vLLM's own code makes of exported folders, on a CPU; run with its package on the path.

    python vllm_reader.py '{"folders": [DIR, ...], "started": [{"length": N, "overrides": {}}, ...],
                            "out": FILE}'

`started` are the `--max-model-len` and `--hf-overrides` of each folder. vLLM's functions read the
config, work out the window and build the RoPE; no layer runs. Two modules are replaced, because
they import operators for GPUs: `_aiter_ops` (AMD's), and the parent package of the layers.

It imports nothing of this project. It writes a `.npz` file: for each folder by its number
`frequencies/N`, `attention/N`, `window/N` (as started), and `default/N`, the window without flags.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np

# pyright: reportMissingImports=false
# Its packages are in an environment of their own, which the type checker does not see.
import vllm

LAYERS = "vllm.model_executor"
parent = types.ModuleType(LAYERS)
parent.__path__ = [str(Path(vllm.__path__[0]) / "model_executor")]
sys.modules[LAYERS] = parent
sys.modules["vllm._aiter_ops"] = MagicMock()

import vllm.config.vllm as current  # noqa: E402
from vllm.config import CompilationConfig  # noqa: E402
from vllm.config.model import _get_and_verify_max_len  # noqa: E402
from vllm.model_executor.layers.rotary_embedding import get_rope  # noqa: E402
from vllm.transformers_utils.config import get_config, get_hf_text_config  # noqa: E402
from vllm.transformers_utils.model_arch_config_convertor import (  # noqa: E402
    ModelArchConfigConvertorBase,
)


def window(config: Any, folder: str, length: int | None) -> int:
    """The window of a server; `length` is what it is started with.

    Raises:
        ValueError: the config states a shorter one.
    """
    arch = ModelArchConfigConvertorBase(config, config).convert()
    tokenizer = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
    return _get_and_verify_max_len(config, arch, tokenizer, length, False, None)


def rope(config: Any, length: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and attention factor, from the row of position 1 of its table."""
    compilation = CompilationConfig()
    compilation.custom_ops = ["none"]
    # It reads these two fields alone; a whole config would look for a device.
    current._current_vllm_config = SimpleNamespace(  # type: ignore[assignment]
        model_config=SimpleNamespace(max_model_len=length), compilation_config=compilation
    )
    built = get_rope(
        ModelArchConfigConvertorBase(config, config).convert().head_size,
        max_position=config.max_position_embeddings,
        rope_parameters=config.rope_parameters,
        is_neox_style=True,
    )
    first = 0
    if hasattr(built, "long_short_cos_sin_cache"):
        table = built.long_short_cos_sin_cache
        first = built.original_max_position_embeddings if built.use_long_rope else 0
    else:
        table = built.cos_sin_cache
    if len(table) < first + length:
        raise ValueError(f"the table of {len(table)} positions is too short for {length} tokens")
    cosine, sine = table[first + 1].double().chunk(2)
    radius = (cosine**2 + sine**2).sqrt()
    return np.arctan2(sine.numpy(), cosine.numpy()), float(radius[0])


def main() -> None:
    """Read every folder."""
    asked = json.loads(sys.argv[1])
    found: dict[str, Any] = {"version": np.array(vllm.__version__)}
    for number, (folder, start) in enumerate(zip(asked["folders"], asked["started"], strict=True)):
        plain = get_hf_text_config(get_config(folder, trust_remote_code=False))
        found[f"default/{number}"] = np.array(window(plain, folder, None))
        config = get_hf_text_config(
            get_config(folder, trust_remote_code=False, hf_overrides_kw=start["overrides"])
        )
        length = window(config, folder, start["length"])
        frequencies, attention = rope(config, length)
        found[f"window/{number}"] = np.array(length)
        found[f"frequencies/{number}"] = frequencies
        found[f"attention/{number}"] = np.array(attention)
    np.savez(asked["out"], **found)


if __name__ == "__main__":
    main()
