"""One forward pass of a decoder, and what happens at its layers.

A pass is active while the decoder runs. The captured attention (src/passes/capture.py) shows it
each layer's queries, keys and values; a hook on each layer (`show_layer_inputs`) shows it the
layer's input.

Shapes: b batch, h query heads, g key-value heads, t tokens, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from src.objectives.base import QKV, Segments
from src.passes.packed import PackedAttention


class CaptureError(RuntimeError):
    """A layer's tensors were captured twice or not at all."""


class LayerInput(NamedTuple):
    """What a layer is called with: hidden states [b, t, hidden], and its other arguments."""

    hidden_bth: Tensor
    arguments: dict[str, Any]


class Visit(Protocol):
    """What is done at a wanted layer; `again` where checkpointing runs it for the backward pass."""

    def __call__(self, layer: int, qkv: QKV, *, again: bool) -> None: ...


class _Active(NamedTuple):
    layer_pass: LayerPass
    again: bool


_active: ContextVar[_Active | None] = ContextVar("active_layer_pass", default=None)


class LayerPass:
    """One forward pass of a decoder.

    Args:
        layers: `visit` is called at these layers, counted from 0.
        visit: gets the attention inputs of each such layer as soon as they exist.
        input_layers: layers whose inputs are kept. The input of layer n is the hidden state after
            n layers.
        stops_at: the last layer whose attention inputs are wanted. The pass leaves out everything
            after them that `src.passes.skipping.skip_unwanted` has prepared, and then gives no
            last hidden states. None for a pass that runs to the end.
        unpadded: whether each row is one text without padding, so that causality is all the masking
            that attention needs.
        segments: the documents of packed rows; None if each row is one text.
    """

    def __init__(
        self,
        layers: Iterable[int],
        visit: Visit,
        *,
        input_layers: Iterable[int] = (),
        stops_at: int | None = None,
        unpadded: bool = False,
        segments: Segments | None = None,
    ) -> None:
        self.unpadded = unpadded
        self.packed = None if segments is None else PackedAttention(segments)
        self._layers = frozenset(layers)
        self._visit = visit
        self._visited: set[int] = set()
        self._input_layers = frozenset(input_layers)
        self._inputs: dict[int, LayerInput] = {}
        self._stops_at = stops_at

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the active pass for the decoder that runs inside the block.

        Raises:
            CaptureError: a wanted layer was run twice, or not at all, by the block's end; or
                another pass is active.
        """
        if _active.get() is not None:
            raise CaptureError("a pass is already running: passes of one model do not nest")
        self._visited.clear()
        self._inputs.clear()
        with _activated(_Active(self, again=False)):
            yield
        if missing := sorted(self._layers - self._visited):
            raise CaptureError(
                f"layers {missing} gave no q, k, v: the model did not run them through the "
                "captured attention (set attn_implementation with capture.attention_name)"
            )
        if missing := sorted(self._input_layers - self._inputs.keys()):
            raise CaptureError(
                f"layers {missing} showed no inputs: call "
                "src.passes.layer_pass.show_layer_inputs on the decoder before"
            )

    def take_inputs(self) -> dict[int, LayerInput]:
        """Hand over the kept inputs by layer, and forget them."""
        taken, self._inputs = self._inputs, {}
        return taken

    @contextmanager
    def again(self) -> Iterator[None]:
        """Make this the active pass for layers that run a second time inside the block.

        Gradient checkpointing runs them for the backward pass, maybe in another thread.
        """
        with _activated(_Active(self, again=True)):
            yield

    def skips(self, layer: int) -> bool:
        """Whether nothing after this layer's attention inputs is wanted."""
        return self._stops_at is not None and layer >= self._stops_at

    def note_input(self, layer: int, given: LayerInput) -> None:
        """Keep a layer's input if it is wanted."""
        if layer in self._input_layers:
            if layer in self._inputs:
                raise CaptureError(f"layer {layer} was entered twice in one forward pass")
            self._inputs[layer] = given

    def visit(self, layer: int, qkv: QKV, *, again: bool) -> None:
        """Call `visit` at a wanted layer."""
        if layer not in self._layers:
            return
        if not again:
            if layer in self._visited:
                raise CaptureError(f"layer {layer} was captured twice in one forward pass")
            self._visited.add(layer)
        if self.packed is not None:
            qkv = qkv._replace(segment_ids_bt=self.packed.segments.ids_bt)
        # `visit` may run a layer of the teacher, which is not part of this pass.
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
    """The pass that is active in this thread."""
    active = _active.get()
    return active.layer_pass if active else None


def visit_layer(layer: int, qkv: QKV) -> bool:
    """Show a layer's attention inputs to the active pass, if there is one.

    Returns:
        whether the pass skips what comes after them.
    """
    active = _active.get()
    if active is None:
        return False
    active.layer_pass.visit(layer, qkv, again=active.again)
    return active.layer_pass.skips(layer)


def show_layer_inputs(decoder: nn.Module) -> None:
    """Let the active pass see each layer's input.

    A hook before the layer sees what the layer gets, not what the layer before it gave: under
    ZeRO-3 that output is already tied to fetching the earlier layer's weights in the backward pass.
    Call this before the engine is made, so that the hook comes before DeepSpeed's.
    """
    layers: Any = getattr(decoder, "layers", ())
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(_showing(index), with_kwargs=True)


def _showing(layer: int) -> Callable[..., None]:
    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        active = _active.get()
        if active is not None and not active.again:
            arguments = dict(kwargs)
            hidden_bth = args[0] if args else arguments.pop("hidden_states")
            active.layer_pass.note_input(layer, LayerInput(hidden_bth, arguments))

    return show


def run_decoder(decoder: Any, input_ids_bt: Tensor, positions_bt: Tensor | None) -> Tensor:
    """Run a decoder and return its last hidden states, [b, t, hidden].

    transformers takes a gap in positions for the border between two packed texts, which then do not
    attend to each other, unless a mask says that all tokens are one text.

    Args:
        input_ids_bt: tokens, [b, t], int64.
        positions_bt: their positions, [b, t], int64; None for 0, 1, 2, ...
    """
    positions: dict[str, Tensor] = {}
    if positions_bt is not None:
        positions = {"position_ids": positions_bt, "attention_mask": torch.ones_like(positions_bt)}
    return decoder(input_ids=input_ids_bt, use_cache=False, **positions).last_hidden_state
