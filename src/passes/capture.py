"""Capture of each layer's queries, keys and values while a model runs.

transformers hands every attention call its query, key and value after RoPE, with grouped keys and
values not repeated. An attention function registered over the ordinary one (SDPA, which uses flash
kernels where it can, or eager) shows them to the active pass and then calls the ordinary one, so
no attention map is ever built. The matching mask function is registered under the same name:
without it transformers passes no mask at all, and padding or causality is silently lost.

Under sequence parallelism the ranks exchange tokens for heads first: the pass then sees whole
blocks for a share of the heads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.objectives.base import QKV
from src.passes.layer_pass import (
    CaptureError,
    LayerPass,
    active_pass,
    visit_layer,
)

# An attention function as transformers calls it: (module, query, key, value, mask, ...).
Attention = Callable[..., Any]


class QKVCapture(LayerPass):
    """A pass that records q, k and v of the given layers; the arguments are those of `LayerPass`.

    Gradient checkpointing runs a layer's forward again during backward. By then the pass has ended,
    so nothing is recorded a second time.
    """

    def __init__(self, layers: Iterable[int], **options: Any) -> None:
        recorded: dict[int, QKV] = {}

        def record(layer: int, qkv: QKV, *, again: bool) -> None:
            if not again:
                recorded[layer] = qkv

        super().__init__(layers, record, **options)
        self._recorded = recorded

    def take(self) -> dict[int, QKV]:
        """Hand over the tensors by layer, and keep no reference to them."""
        taken = dict(self._recorded)
        self._recorded.clear()
        return taken


def _ordinary_attention(implementation: str, module: nn.Module) -> Attention:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if implementation == "eager":
        # Eager attention is not in the registry: each model file defines its own.
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]


def _capturing(implementation: str) -> Attention:
    # Never traced by torch.compile: what happens here depends on the active pass.
    @torch.compiler.disable
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        running = active_pass()
        if running is not None:
            layer = module.layer_idx
            if not isinstance(layer, int):
                raise CaptureError(f"{type(module).__name__} has no integer layer_idx: {layer!r}")
            if visit_layer(layer, QKV(query, key, value)):
                return query.transpose(1, 2), None
        ordinary = _ordinary_attention(implementation, module)
        if running is not None and running.packed is not None:
            fast = implementation == "sdpa"
            return running.packed.run(ordinary, module, (query, key, value), kwargs, fast=fast)
        return ordinary(module, query, key, value, *args, **kwargs)

    return attention


def attention_name(implementation: Literal["sdpa", "eager"]) -> str:
    """Register capture over an attention implementation; returns the name to load a model with."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = f"captured_{implementation}"
    AttentionInterface.register(name, _capturing(implementation))
    mask = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
    AttentionMaskInterface.register(name, _masking(mask, causal_alone=implementation == "sdpa"))
    return name


def _masking(
    ordinary: Callable[..., Tensor | None], *, causal_alone: bool = True
) -> Callable[..., Tensor | None]:
    """A mask function that makes no mask which attention does not need.

    Attention makes a mask of its own for packed blocks (src/passes/packed.py). SDPA is causal
    without a mask (`causal_alone`), which is enough for rows of one text.

    transformers looks at the positions to find out that a row is one text. The host waits for that,
    and while a CUDA graph is recorded it cannot look and makes a mask of all tokens by all tokens.
    """

    def mask(
        *args: Any, kv_length: int, local_size: int | None = None, **kwargs: Any
    ) -> Tensor | None:
        active = active_pass()
        if active is not None:
            one_text = active.unpadded and (local_size or kv_length) >= kv_length
            if active.packed is not None or (causal_alone and one_text):
                return None
        return ordinary(*args, kv_length=kv_length, local_size=local_size, **kwargs)

    return mask


def attention_over_ranks(over: Callable[[Attention], Attention]) -> str:
    """Register captured SDPA for sequence parallelism, and return the name to load a model with.

    No mask function is registered with it: a mask over one rank's tokens does not fit whole blocks.
    transformers then passes no mask, and SDPA makes every block causal. Blocks have no padding
    here, and the plan refuses sliding windows.

    Args:
        over: wraps an attention function that sees whole blocks for a share of the heads; the
            result sees a part of the blocks for all heads.
    """
    from transformers import AttentionInterface

    name = "captured_sdpa_over_ranks"
    AttentionInterface.register(name, torch.compiler.disable(over(_capturing("sdpa"))))
    return name
