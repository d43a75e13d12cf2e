"""Names of devices and number formats in configs, and what torch calls them."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def uses_cuda(name: str) -> bool:
    """Whether a device setting means GPUs on this machine."""
    return name != "cpu" and torch.cuda.is_available()


def device_of(name: str) -> torch.device:
    """`auto` is the GPU where there is one. The current CUDA device is the rank's own.

    Raises:
        ValueError: cuda is asked for by name where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda but torch sees no CUDA device: use engine.device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)
    )
