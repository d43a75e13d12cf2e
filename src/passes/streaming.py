"""Layers that stream: the teacher's side kept small, unwanted work left out, kernels run once.

A distillation loss of a layer is computed inside the student's layer, where its q, k and v are born
(src/passes/capture.py); what then remains of it is a scalar. The teacher runs before, and leaves
for each layer either its q, k and v, or only the layer's input, from which the layer's own code
gives them again when they are wanted.

Shapes: b batch, t tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from src.models.adapters import causal_model
from src.models.families import FAMILIES, LayerParts, layer_parts
from src.objectives.base import Batch, Needs
from src.passes.capture import LayerPass, LayerQKV, QKVCapture, active_pass, note_layer_input

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# What the teacher leaves behind for each layer.
Keep = Literal["layer_inputs", "qkv"]


class LayerKindError(ValueError):
    """Layers that consist of other parts than this module knows."""


def known_parts(decoder: nn.Module) -> LayerParts | None:
    """What every layer consists of, if that is what the layers of a listed family do."""
    layers: Any = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(
        getattr(decoder, "norm", None), nn.Module
    ):
        return None
    found = {layer_parts({name for name, _ in layer.named_children()}) for layer in layers}
    return found.pop() if len(found) == 1 else None


def skip_unwanted(decoder: nn.Module, ends: Collection[int | None]) -> None:
    """Let a pass leave out everything after the q, k and v of the layer that it stops at.

    Layers of an unknown kind (`known_parts`) run whole, as without this.

    Args:
        decoder: the transformer below the output head.
        ends: layers that passes may stop at; None stands for passes that run to the end.
    """
    stops = [end for end in ends if end is not None]
    parts = known_parts(decoder)
    if not stops or parts is None:
        return
    layers: Any = decoder.layers
    for index in stops:
        for name in (f"{parts.attention}.{parts.output}", *parts.after):
            _skippable(layers[index].get_submodule(name), index, _zeros)
    for index in range(min(stops) + 1, len(layers)):
        # Not its q, k and v either.
        _skippable(layers[index], index - 1, _unchanged)
    _skippable(decoder.norm, len(layers) - 1, _unchanged)  # type: ignore[arg-type]  # a module


def show_layer_inputs(decoder: nn.Module) -> None:
    """Let passes keep the hidden states that enter a layer.

    What a layer gets, and not what the one before it gave: under ZeRO-3 that is already tied to
    fetching the earlier layer's weights in the backward pass. Call it before the engine is made.
    """
    layers: Any = getattr(decoder, "layers", ())

    def showing(index: int) -> Callable[..., None]:
        def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            note_layer_input(index, args[0] if args else kwargs["hidden_states"])

        return show

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(showing(index), with_kwargs=True)


def compile_layers(decoder: nn.Module, ends: Collection[int | None]) -> None:
    """Compile each layer's forward, but for those that a pass may stop at.

    The captured attention is not traced (src/passes/capture.py): a layer is compiled up to it and
    after it.
    """
    layers: Any = getattr(decoder, "layers", ())
    for index, layer in enumerate(layers):
        if index not in ends:
            layer.forward = torch.compile(layer.forward, dynamic=False)


def _skippable(
    module: nn.Module, after: int, instead: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    """Let `instead` stand for a module in passes that stop at layer `after` or before."""
    ordinary = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        running = active_pass()
        if running is not None and running.skips(after):
            return instead(module, x)
        return ordinary(x, *args, **kwargs)

    # On the module itself, so that hooks (ZeRO-3 has many) stay where they are.
    module.forward = forward


def _unchanged(module: nn.Module, x: Tensor) -> Tensor:
    del module
    return x


def _zeros(module: nn.Module, x: Tensor) -> Tensor:
    """Zeros of the module's output's shape, without memory: nobody reads them."""
    width = getattr(module, "out_features", x.shape[-1])
    return x.new_zeros(()).expand(*x.shape[:-1], width)


class _LayerInput(NamedTuple):
    hidden_bth: Tensor
    arguments: dict[str, Any]


class Taught(NamedTuple):
    """What a teacher's pass leaves behind; each is None or empty unless asked for.

    Attributes:
        hidden_bth: last hidden states.
        qkv: gives a layer's q, k, v.
        hidden_layers_bth: hidden states by the number of layers before them.
    """

    hidden_bth: Tensor | None
    qkv: Mapping[int, Callable[[], LayerQKV]]
    hidden_layers_bth: Mapping[int, Tensor]


class TeacherPass:
    """Runs a model as the teacher.

    Args:
        model: the causal language model, without anything around it.
        keep: what is left behind for each layer.

    Raises:
        LayerKindError: `layer_inputs` for layers of an unknown kind.
    """

    def __init__(self, model: PreTrainedModel, keep: Keep) -> None:
        self._decoder: Any = model.get_decoder()
        self._keep: Keep = keep
        self._inputs: dict[int, _LayerInput] | None = None
        self._wanted: frozenset[int] = frozenset()
        self._parts = known_parts(self._decoder)
        if keep == "layer_inputs":
            if self._parts is None:
                raise LayerKindError(
                    f"engine.teacher.keep=layer_inputs knows the layers of {', '.join(FAMILIES)} "
                    f"only, not those of {type(model).__name__}: use keep=qkv"
                )
            for index, layer in enumerate(self._decoder.layers):
                layer.register_forward_pre_hook(self._noting(index), with_kwargs=True)

    def run(self, batch: Batch, needs: Needs) -> Taught:
        """Run blocks at contiguous positions and keep what is needed."""
        layers = needs.qkv_layers
        stored: dict[int, LayerQKV] = {}

        def store(layer: int, qkv: LayerQKV, *, again: bool) -> None:
            del again  # nothing is checkpointed here
            stored[layer] = qkv

        layer_pass = LayerPass(
            layers if self._keep == "qkv" else (),
            store,
            hidden_layers=needs.hidden_layers,
            stops_at=needs.teacher_stops_at,
        )
        if self._keep == "layer_inputs":
            self._inputs, self._wanted = {}, frozenset(layers)
        with torch.no_grad(), self._whole(), layer_pass.running():
            hidden_bth = self._decode(batch)
        inputs, self._inputs = self._inputs, None
        if self._keep == "qkv":
            suppliers = {layer: lambda kept=stored[layer]: kept for layer in layers}
        else:
            assert inputs is not None
            suppliers = {
                layer: lambda i=layer, kept=inputs[layer]: self._again(i, kept) for layer in layers
            }
        return Taught(
            hidden_bth if needs.hidden else None,
            suppliers,
            layer_pass.take_hidden(),
        )

    def _whole(self) -> AbstractContextManager[None]:
        """Entered while the whole model runs as the teacher."""
        return nullcontext()

    def _one_layer(self, index: int) -> AbstractContextManager[None]:
        """Entered while one layer gives its q, k, v."""
        del index
        return nullcontext()

    def _decode(self, batch: Batch) -> Tensor:
        positions = explicit_positions(batch.contiguous_bt)
        return self._decoder(
            input_ids=batch.input_ids_bt, use_cache=False, **positions
        ).last_hidden_state

    def _noting(self, index: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            if self._inputs is not None and index in self._wanted:
                self._inputs[index] = _LayerInput(args[0], kwargs)

        return note

    def _again(self, index: int, kept: _LayerInput) -> LayerQKV:
        """A layer's q, k, v from its input, by its own norm, projections and RoPE."""
        assert self._parts is not None
        layer = self._decoder.layers[index]
        attention = layer.get_submodule(self._parts.attention)
        capture = QKVCapture([index], stops_at=index)
        with (
            torch.no_grad(),
            self._one_layer(index),
            _left_out(attention.get_submodule(self._parts.output)),
            capture.recording(),
        ):
            normed_bth = layer.get_submodule(self._parts.norm)(kept.hidden_bth)
            attention(hidden_states=normed_bth, **kept.arguments)
        return capture.take()[index]


class SharedTeacherPass(TeacherPass):
    """Runs the student's own model as the teacher: adapters off, native RoPE, no dropout.

    Args:
        network: the student's, with adapters.
        keep: as in `TeacherPass`.
        native: the model's config with native RoPE.
        device: where the student runs.

    Raises:
        LayerKindError: a decoder that does not keep its RoPE in one place.
    """

    def __init__(
        self, network: nn.Module, keep: Keep, native: PretrainedConfig, device: torch.device
    ) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = causal_model(network)
        super().__init__(model, keep)
        self._model = model
        self._adapters = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
        self._adapters_of = [
            [m for m in layer.modules() if isinstance(m, BaseTunerLayer)]
            for layer in getattr(self._decoder, "layers", ())
        ]
        rotary: Any = getattr(self._decoder, "rotary_emb", None)
        if not isinstance(rotary, nn.Module):
            raise LayerKindError(
                f"engine.teacher.share_base=true: {type(self._decoder).__name__} has no rotary_emb "
                "to exchange for the native one: use share_base=false"
            )
        # Not a submodule of the student's: it is in none of its checkpoints.
        self._native_rotary = type(rotary)(native).to(device)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        training, scaled = self._model.training, self._decoder.rotary_emb
        self._model.eval()
        self._decoder.rotary_emb = self._native_rotary
        try:
            with _switched_off(self._adapters):
                yield
        finally:
            self._decoder.rotary_emb = scaled
            self._model.train(training)

    def _one_layer(self, index: int) -> AbstractContextManager[None]:
        # Its own only: all of them, for each layer, would be thousands of switches a block.
        return _switched_off(self._adapters_of[index])


def explicit_positions(positions_bt: Tensor | None) -> dict[str, Tensor]:
    """A decoder's arguments for positions other than 0, 1, 2, ...; none for None.

    transformers takes a gap in positions for the border between two packed texts, which then do not
    see each other, unless it is told by a mask that all tokens are one text.
    """
    if positions_bt is None:
        return {}
    return {"position_ids": positions_bt, "attention_mask": torch.ones_like(positions_bt)}


@contextmanager
def _switched_off(adapters: Sequence[Any]) -> Iterator[None]:
    # PEFT's own switch also stops the adapters' gradients, which are being computed just then.
    for adapter in adapters:
        adapter._disable_adapters = True
    try:
        yield
    finally:
        for adapter in adapters:
            adapter._disable_adapters = False


@contextmanager
def _left_out(module: nn.Module) -> Iterator[None]:
    """Inside, the module does nothing."""
    own = vars(module).get("forward")
    module.forward = lambda x, *args, **kwargs: _zeros(module, x)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def checkpoint_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` of torch.utils.checkpoint: of a layer's forward pass, and of its second run.

    In the second run the pass is what it was in the first, so that the layer's loss is there
    again. Results of operators in the namespace `relation_kl` are kept from the first: they are
    small and dear. A backend that is not an operator (chunked, reference) runs again.
    """
    running = active_pass()
    if running is None:
        return nullcontext(), nullcontext()
    kept: deque[Any] = deque()
    return _Keeping(kept), _second_run(running, kept)


@contextmanager
def _second_run(layer_pass: LayerPass, kept: deque[Any]) -> Iterator[None]:
    with _GivingBack(kept), layer_pass.again():
        yield


# torch's own selective checkpointing keeps count of every operator and fails where the second run
# has more of one. Under ZeRO-3 it has: weights are fetched and freed at other points of it.


class _Keeping(TorchDispatchMode):
    """Keeps the relations' results, in their order."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if func.namespace == "relation_kl":
            self._kept.append(tree_map_only(Tensor, Tensor.detach, results))
        return results


class _GivingBack(TorchDispatchMode):
    """Gives the kept results in place of computing them again."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "relation_kl":
            return self._kept.popleft()
        return func(*args, **(kwargs or {}))
