"""Other readers of an export, each in an environment of its own beside this one's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from src.assets.cache import cache_dir

# Packages that replace this environment's own, by reader. Those of this environment need none.
PACKAGES: dict[str, tuple[str, ...]] = {
    "transformers 5": (),
    "transformers 4.57": (
        "transformers==4.57.6",
        "huggingface-hub==0.36.2",
        "tokenizers==0.22.2",
    ),
    "llama.cpp": (
        # The library of the second is driven by the bindings of the first, made one day earlier.
        "llama-cpp-py-sync==0.11548",
        "xllamacpp==2026.10.11549",
        "cffi==2.0.0",
        "pycparser==2.23",
    ),
    "vLLM": (
        # Its wheel of 340 MB, and what its reading of configs imports besides this environment.
        "vllm==0.33.0",
        "cbor2==6.3.0",
        "pyzmq==27.3.0",
        "openai-harmony==0.0.8",
        "openai==3.57.0",
    ),
}
_HERE = Path(__file__).parent


def environment(packages: Sequence[str]) -> Path:
    """A folder with these packages for PYTHONPATH, installed once into the cache.

    Raises:
        CalledProcessError: they cannot be installed.
    """
    target = cache_dir() / "readers" / "+".join(packages).replace("==", "-")[:100]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            partial = target.with_name(f"{target.name}.partial")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--upgrade", "--target", str(partial), *packages], check=True)
            partial.rename(target)
    return target


def read(
    script: str, packages: Sequence[str], asked: Mapping[str, Any], out: Path
) -> dict[str, np.ndarray]:
    """Run a reader of this folder with its packages; returns the arrays that it wrote.

    Raises:
        CalledProcessError: it failed.
    """
    path = [str(environment(packages))] if packages else []
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path)}
    request = json.dumps({**asked, "out": str(out)})
    command = [sys.executable, str(_HERE / script), request]
    # The repository's `kernels` must not be on the path of another program.
    subprocess.run(command, check=True, env=environ, cwd=out.parent)
    with np.load(out) as arrays:
        return dict(arrays)
