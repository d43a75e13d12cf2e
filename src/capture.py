"""Collects the attention inputs of chosen layers while a model runs, and owns their lifetime.

transformers hands every attention call its post-RoPE query, key and value, with grouped keys and
values not repeated. An attention function registered over the ordinary one (SDPA, which takes flash
kernels where it can, or eager) records them and then calls the ordinary one, so no attention map is
ever built. The matching mask function is registered under the same name: without it transformers
passes no mask at all, and padding or causality is silently lost.

Shapes: b batch, h query heads, g key-value heads, t tokens, d head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

IMPLEMENTATIONS = ("sdpa", "eager")


class CaptureError(RuntimeError):
    """A layer's tensors were captured twice or not at all."""


class LayerQKV(NamedTuple):
    """Attention inputs of one layer.

    Q [b, h, t, d] and k [b, g, t, d] after RoPE, v [b, g, t, d].
    """

    q_bhtd: Tensor
    k_bgtd: Tensor
    v_bgtd: Tensor


_active: ContextVar[QKVCapture | None] = ContextVar("active_qkv_capture", default=None)


class QKVCapture:
    """Records q, k and v of the given layers during one forward pass.

    Recording is on only inside `recording()`. Gradient checkpointing runs a layer's forward again
    during backward; by then the block has ended, so nothing is recorded a second time.
    """

    def __init__(self, layers: Iterable[int]) -> None:
        self.wanted = frozenset(layers)
        self._recorded: dict[int, LayerQKV] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward pass that runs inside this block.

        Raises:
            CaptureError: a wanted layer was recorded twice, or not at all, by the block's end; or
                blocks are nested.
        """
        if _active.get() is not None:
            raise CaptureError("a capture is already recording: captures do not nest")
        self._recorded.clear()
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)
        missing = sorted(self.wanted - self._recorded.keys())
        if missing:
            raise CaptureError(
                f"layers {missing} gave no q, k, v: the model did not run them through the "
                "captured attention (set attn_implementation with capture.attention_name)"
            )

    def record(self, layer: int, tensors: LayerQKV) -> None:
        """Keep a layer's tensors; called by the attention function."""
        if layer not in self.wanted:
            return
        if layer in self._recorded:
            raise CaptureError(f"layer {layer} was captured twice in one forward pass")
        self._recorded[layer] = tensors

    def take(self) -> dict[int, LayerQKV]:
        """Hand the tensors over by layer and forget them, so that nobody keeps them alive here."""
        taken, self._recorded = self._recorded, {}
        return taken


def _ordinary_attention(implementation: str, module: nn.Module) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if implementation == "eager":
        # Eager attention is not in the registry: each model file defines its own.
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]


def _capturing(implementation: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        capture = _active.get()
        if capture is not None:
            layer = module.layer_idx
            if not isinstance(layer, int):
                raise CaptureError(f"{type(module).__name__} has no integer layer_idx: {layer!r}")
            capture.record(layer, LayerQKV(query, key, value))
        ordinary = _ordinary_attention(implementation, module)
        return ordinary(module, query, key, value, *args, **kwargs)

    return attention


def attention_name(implementation: str) -> str:
    """Register capture over an attention implementation and return the name to load a model with.

    Args:
        implementation: one of IMPLEMENTATIONS.

    Raises:
        ValueError: an implementation that is not listed.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r} is not one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = f"captured_{implementation}"
    AttentionInterface.register(name, _capturing(implementation))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def attention_output(layer: LayerQKV, *, scale: float | None = None) -> Tensor:
    """Causal attention recomputed from captured tensors, [b, h, t, d].

    It is what the layer's own call gave; used to check a capture.
    """
    group = layer.q_bhtd.shape[1] // layer.k_bgtd.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        layer.q_bhtd,
        layer.k_bgtd.repeat_interleave(group, dim=1),
        layer.v_bgtd.repeat_interleave(group, dim=1),
        is_causal=True,
        scale=scale,
    )
