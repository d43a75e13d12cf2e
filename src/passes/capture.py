"""What is done with a layer's attention inputs while a model runs.

transformers hands every attention call its post-RoPE query, key and value, with grouped keys and
values not repeated. An attention function registered over the ordinary one (SDPA, which takes flash
kernels where it can, or eager) shows them to the pass that is running and then calls the ordinary
one, so no attention map is ever built. The matching mask function is registered under the same
name: without it transformers passes no mask at all, and padding or causality is silently lost.

Where blocks are spread over ranks, the ranks exchange before: what is shown is then whole blocks
for a share of the heads.

Shapes: b batch, h query heads, g key-value heads, t tokens, d head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

IMPLEMENTATIONS = ("sdpa", "eager")

# An attention function as transformers calls it: (module, query, key, value, mask, ...).
Attention = Callable[..., Any]


class CaptureError(RuntimeError):
    """A layer's tensors were captured twice or not at all."""


class LayerQKV(NamedTuple):
    """Attention inputs of one layer.

    Q [b, h, t, d] and k [b, g, t, d] after RoPE, v [b, g, t, d].
    """

    q_bhtd: Tensor
    k_bgtd: Tensor
    v_bgtd: Tensor


class Visit(Protocol):
    """What is done at a wanted layer; `again` where checkpointing runs it for the backward pass."""

    def __call__(self, layer: int, qkv: LayerQKV, *, again: bool) -> None: ...


class _Active(NamedTuple):
    layer_pass: LayerPass
    again: bool


_active: ContextVar[_Active | None] = ContextVar("active_layer_pass", default=None)


class LayerPass:
    """One forward pass of a decoder, and what is done at its layers.

    Args:
        layers: indices at which `visit` is called.
        visit: gets each wanted layer's attention inputs, where they are born.
        hidden_layers: layers whose inputs are kept: the hidden states after so many layers.
        stops_at: nothing after the attention inputs of this layer is wanted: its attention and
            whatever `src.passes.streaming.skip_unwanted` has prepared are left out. The pass then
            gives no hidden states.
    """

    def __init__(
        self,
        layers: Iterable[int],
        visit: Visit,
        *,
        hidden_layers: Iterable[int] = (),
        stops_at: int | None = None,
    ) -> None:
        self.wanted = frozenset(layers)
        self.stops_at = stops_at
        self._wanted_hidden = frozenset(hidden_layers)
        self._hidden_bth: dict[int, Tensor] = {}
        self._visit = visit
        self._seen: set[int] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The forward pass that runs inside this block is this one.

        Raises:
            CaptureError: a wanted layer was run twice, or not at all, by the block's end; or
                another pass is running.
        """
        if _active.get() is not None:
            raise CaptureError("a pass is already running: passes of one model do not nest")
        self._seen.clear()
        self._hidden_bth.clear()
        with _activated(_Active(self, again=False)):
            yield
        missing = sorted(self.wanted - self._seen)
        if missing:
            raise CaptureError(
                f"layers {missing} gave no q, k, v: the model did not run them through the "
                "captured attention (set attn_implementation with capture.attention_name)"
            )

        missing = sorted(self._wanted_hidden - self._hidden_bth.keys())
        if missing:
            raise CaptureError(
                f"layers {missing} showed no hidden states: call "
                "src.passes.streaming.show_layer_inputs on the decoder before"
            )

    def take_hidden(self) -> dict[int, Tensor]:
        """Hand the layers' inputs over, [b, t, hidden] by layer, and forget them."""
        taken, self._hidden_bth = self._hidden_bth, {}
        return taken

    @contextmanager
    def again(self) -> Iterator[None]:
        """Layers that run inside this block are those of this pass, for the second time.

        Gradient checkpointing runs them for the backward pass, maybe in another thread.
        """
        with _activated(_Active(self, again=True)):
            yield

    def skips(self, layer: int) -> bool:
        """Whether what follows this layer's attention inputs is wanted by nobody."""
        return self.stops_at is not None and layer >= self.stops_at

    def note_input(self, layer: int, hidden_bth: Tensor) -> None:
        """Keep a layer's input if it is wanted; called when the layer is entered."""
        if layer in self._wanted_hidden:
            if layer in self._hidden_bth:
                raise CaptureError(f"layer {layer} was entered twice in one forward pass")
            self._hidden_bth[layer] = hidden_bth

    def visit(self, layer: int, qkv: LayerQKV, *, again: bool) -> None:
        """Do what is to be done at a layer; called by the attention function."""
        if layer not in self.wanted:
            return
        if not again:
            if layer in self._seen:
                raise CaptureError(f"layer {layer} was captured twice in one forward pass")
            self._seen.add(layer)
        # A model that runs for the sake of this layer, the teacher's, is not part of this pass.
        with _activated(None):
            self._visit(layer, qkv, again=again)


@contextmanager
def _activated(active: _Active | None) -> Iterator[None]:
    token = _active.set(active)
    try:
        yield
    finally:
        _active.reset(token)


def active_pass() -> LayerPass | None:
    """The pass that is running in this thread."""
    active = _active.get()
    return active.layer_pass if active else None


def note_layer_input(layer: int, hidden_bth: Tensor) -> None:
    """Show a layer's input to the pass that is running for the first time, if there is one."""
    active = _active.get()
    if active is not None and not active.again:
        active.layer_pass.note_input(layer, hidden_bth)


class QKVCapture:
    """Records q, k and v of the given layers during one forward pass.

    Recording is on only inside `recording()`. Gradient checkpointing runs a layer's forward again
    during backward; by then the block has ended, so nothing is recorded a second time.
    """

    def __init__(self, layers: Iterable[int], *, stops_at: int | None = None) -> None:
        self._recorded: dict[int, LayerQKV] = {}
        self._pass = LayerPass(layers, self._record, stops_at=stops_at)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward pass that runs inside this block.

        Raises:
            CaptureError: as `LayerPass.running` does.
        """
        self._recorded.clear()
        with self._pass.running():
            yield

    def _record(self, layer: int, qkv: LayerQKV, *, again: bool) -> None:
        if not again:
            self._recorded[layer] = qkv

    def take(self) -> dict[int, LayerQKV]:
        """Hand the tensors over by layer and forget them, so that nobody keeps them alive here."""
        taken, self._recorded = self._recorded, {}
        return taken


def _ordinary_attention(implementation: str, module: nn.Module) -> Attention:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if implementation == "eager":
        # Eager attention is not in the registry: each model file defines its own.
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]


def _capturing(implementation: str) -> Attention:
    # Not traced where layers are compiled: what a pass does here depends on the pass.
    @torch.compiler.disable
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        active = _active.get()
        if active is not None:
            layer = module.layer_idx
            if not isinstance(layer, int):
                raise CaptureError(f"{type(module).__name__} has no integer layer_idx: {layer!r}")
            active.layer_pass.visit(layer, LayerQKV(query, key, value), again=active.again)
            if active.layer_pass.skips(layer):
                return query.transpose(1, 2), None
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


def attention_over_ranks(over: Callable[[Attention], Attention]) -> str:
    """Register captured SDPA for blocks that are spread over ranks, and return its name.

    No mask function goes with it: the mask of a part's tokens would be of no use once the whole
    blocks are there. transformers then passes none, and SDPA makes every block causal by itself.
    There is no padding here, and sliding windows are refused (src/planning/plan.py).

    Args:
        over: makes, of the attention of whole blocks for a share of the heads, that of a part of
            the blocks for all heads.
    """
    from transformers import AttentionInterface

    name = "captured_sdpa_over_ranks"
    AttentionInterface.register(name, torch.compiler.disable(over(_capturing("sdpa"))))
    return name


def attention_output(
    layer: LayerQKV,
    *,
    scale: float | None = None,
    window: int | None = None,
    key_mask_bt: Tensor | None = None,
) -> Tensor:
    """Causal attention recomputed from captured tensors, [b, h, t, d].

    It is what the layer's own call gave; used to check a capture. By plain formulas, so that it
    shares nothing with the kernels that the model uses.

    Args:
        layer: captured tensors.
        scale: factor on the scores, by default head_dim ** -0.5.
        window: a query at i sees keys j with i - j < window; by default all before it.
        key_mask_bt: true for real tokens; rows that see none give zeros.
    """
    q_bhtd = layer.q_bhtd
    group, tokens = q_bhtd.shape[1] // layer.k_bgtd.shape[1], q_bhtd.shape[2]
    k_bhtd = layer.k_bgtd.repeat_interleave(group, dim=1)
    v_bhtd = layer.v_bgtd.repeat_interleave(group, dim=1)
    at = torch.arange(tokens, device=q_bhtd.device)
    behind_tt = at[:, None] - at[None, :]
    seen = (behind_tt >= 0) & (behind_tt < (window or tokens))
    if key_mask_bt is not None:
        seen = seen & key_mask_bt[:, None, None, :].bool()
    scores = q_bhtd @ k_bhtd.mT * (q_bhtd.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return weights @ v_bhtd
