"""Work that a pass leaves out, because its result is not needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from src.models.families import LayerParts, layer_parts
from src.passes.layer_pass import active_pass


def known_parts(decoder: nn.Module) -> LayerParts | None:
    """The parts of every layer, if all layers are built like those of one listed family."""
    layers: Any = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(
        getattr(decoder, "norm", None), nn.Module
    ):
        return None
    kinds = {layer_parts({name for name, _ in layer.named_children()}) for layer in layers}
    return kinds.pop() if len(kinds) == 1 else None


def skip_unwanted(decoder: nn.Module, ends: Collection[int | None]) -> None:
    """Let a pass leave out everything after the q, k and v of the layer that it stops at.

    Layers of an unknown kind (`known_parts`) run whole.
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
        # Of later layers, q, k and v are left out too.
        _skippable(layers[index], index - 1, _unchanged)
    _skippable(decoder.norm, len(layers) - 1, _unchanged)  # type: ignore[arg-type]  # a module


def _skippable(
    module: nn.Module, after: int, instead: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    """Let `instead` replace a module in passes that stop at layer `after` or before."""
    ordinary = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        running = active_pass()
        if running is not None and running.skips(after):
            return instead(module, x)
        return ordinary(x, *args, **kwargs)

    # Set on the module itself, so that its hooks (ZeRO-3 has many) stay where they are.
    module.forward = forward


def _unchanged(module: nn.Module, x: Tensor) -> Tensor:
    return x


def _zeros(module: nn.Module, x: Tensor) -> Tensor:
    """Zeros in the shape of the module's output. They take no memory."""
    width = getattr(module, "out_features", x.shape[-1])
    return x.new_zeros(()).expand(*x.shape[:-1], width)


@contextmanager
def left_out(module: nn.Module) -> Iterator[None]:
    """Inside the block, the module gives zeros."""
    with own_forward(module):
        module.forward = lambda x, *args, **kwargs: _zeros(module, x)
        yield


@contextmanager
def own_forward(*modules: nn.Module) -> Iterator[None]:
    """After the block, the modules run as before, whatever was set in it."""
    before = [(module, vars(module).get("forward")) for module in modules]
    try:
        yield
    finally:
        for module, forward in before:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward
