"""Attention in packed blocks: every token sees earlier tokens of its own document only.

On a GPU in half precision, each document is a sequence of its own for flash attention, so nothing
is computed across borders. Elsewhere on a GPU the ordinary attention gets a mask of all tokens by
all tokens. Both work on tensors of fixed shapes, so they can be recorded as CUDA graphs. On a CPU
one document follows another: documents of an eighth of a block need an eighth of the time.

Shapes: b batch, h query heads, g key-value heads, t tokens of whole blocks, d head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.objectives.base import Segments, seen_tokens


class PackedAttention:
    """The attention of one pass over packed blocks."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self._masks: dict[int | None, Tensor] = {}

    def run(
        self,
        ordinary: Callable[..., Any],
        module: nn.Module,
        qkv: tuple[Tensor, Tensor, Tensor],
        options: dict[str, Any],
        *,
        fast: bool,
    ) -> Any:
        """What an attention function of transformers returns: [b, t, h, d], and None or weights.

        Args:
            ordinary: the attention function that a mask can be given to.
            qkv: q [b, h, t, d] after RoPE, k and v [b, g, t, d].
            options: keyword arguments of the call, such as `scaling` and `sliding_window`.
            fast: whether flash attention may take its place.
        """
        query = qkv[0]
        window = options.get("sliding_window")
        if window is not None and window >= query.shape[2]:
            window = None
        if fast and _flash_takes(query):
            return self._flash(qkv, window, options.get("scaling")), None
        if fast and not query.is_cuda:
            return self._by_document(qkv, window, options.get("scaling")), None
        seen_b1tt = self._mask(window)
        if not fast:
            # Eager attention adds its mask to the scores.
            blocked = torch.zeros_like(seen_b1tt, dtype=query.dtype)
            seen_b1tt = blocked.masked_fill(~seen_b1tt, torch.finfo(query.dtype).min)
        options = {name: value for name, value in options.items() if name != "attention_mask"}
        return ordinary(module, *qkv, seen_b1tt, **options)

    def _by_document(
        self, qkv: tuple[Tensor, Tensor, Tensor], window: int | None, scale: float | None
    ) -> Tensor:
        """Attention over one document after another, [b, t, h, d]."""
        b, h, t, d = qkv[0].shape
        # torch has no fast attention with grouped heads on a CPU.
        heads = [x.repeat_interleave(h // x.shape[1], dim=1) for x in qkv]
        outputs: list[Tensor] = []
        for start, end in pairwise([*self.segments.starts_n.tolist(), b * t]):
            if start == end:
                continue
            row, first = divmod(start, t)
            q, k, v = (x[row : row + 1, :, first : first + end - start] for x in heads)
            sliding = window is not None and window < end - start
            mask = seen_tokens(end - start, window, q.device) if sliding else None
            attended = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=not sliding, scale=scale
            )
            outputs.append(attended[0])
        return torch.cat(outputs, 1).view(h, b, t, d).permute(1, 2, 0, 3)

    def _mask(self, window: int | None) -> Tensor:
        """Which tokens each token sees, bool [b, 1, t, t]; made once for all layers."""
        if window not in self._masks:
            ids_bt = self.segments.ids_bt
            self._masks[window] = seen_tokens(ids_bt.shape[1], window, ids_bt.device, ids_bt)
        return self._masks[window]

    def _flash(
        self, qkv: tuple[Tensor, Tensor, Tensor], window: int | None, scale: float | None
    ) -> Tensor:
        """Flash attention over sequences of unequal lengths, [b, t, h, d]."""
        from torch.nn.attention.varlen import varlen_attn

        b, h, t, d = qkv[0].shape
        q, k, v = (x.transpose(1, 2).reshape(b * t, x.shape[1], d) for x in qkv)
        # Newer versions of torch want to be told of grouped heads.
        told = "enable_gqa" in inspect.signature(varlen_attn).parameters
        grouped: dict[str, Any] = {"enable_gqa": True} if told else {}
        starts_n = self.segments.starts_n
        seen = (-1 if window is None else window - 1, 0)
        attended: Any = varlen_attn(
            q, k, v, starts_n, starts_n, t, t, scale=scale, window_size=seen, **grouped
        )
        return attended.view(b, t, h, d)


def _flash_takes(query: Tensor) -> bool:
    d = query.shape[-1]
    return (
        query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not d % 8 and d <= 256
    )
