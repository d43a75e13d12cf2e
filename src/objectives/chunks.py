"""Losses of long blocks, computed chunk by chunk and again for the backward pass.

Shapes: n tokens, c tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def summed_by_chunks(
    summed: Callable[..., Tensor], tensors: tuple[Tensor, ...], *, chunk: int
) -> Tensor:
    """Sum of `summed(*chunks)` over chunks of at most `chunk` tokens.

    Only one chunk's intermediate tensors exist at a time, forward and backward.

    Args:
        summed: returns a scalar, or several of them in a vector, for a `[1, c, ...]` chunk of each
            tensor.
        tensors: `[1, n, ...]` each.
        chunk: the largest number of tokens in a chunk.
    """
    n = tensors[0].shape[1]
    if n <= chunk:
        return summed(*tensors)
    total = torch.zeros((), device=tensors[0].device)
    for start in range(0, n, chunk):
        pieces = (x[:, start : start + chunk] for x in tensors)
        part = checkpoint(summed, *pieces, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total
