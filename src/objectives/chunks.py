"""Long blocks piece by piece: what a piece needs is made again for the backward pass.

Shapes: n tokens, c tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def summed_by_chunks(
    summed: Callable[..., Tensor], tensors: tuple[Tensor, ...], *, chunk: int
) -> Tensor:
    """Sum of `summed(*pieces)` over pieces of at most `chunk` tokens.

    Only one piece's intermediate tensors exist at a time, forward and backward.

    Args:
        summed: gives a scalar for `[1, c, ...]` pieces of all tensors.
        tensors: `[1, n, ...]` each.
        chunk: tokens of a piece.
    """
    n = tensors[0].shape[1]
    if n <= chunk:
        return summed(*tensors)
    total = torch.zeros((), device=tensors[0].device)
    for start in range(0, n, chunk):
        pieces = (x[:, start : start + chunk] for x in tensors)
        part = checkpoint(summed, *pieces, use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total
