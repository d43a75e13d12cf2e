"""Gradient checkpointing of layers at which an objective is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from src.models.adapters import causal_model
from src.passes.layer_pass import LayerPass, active_pass


def checkpoint_layers(network: nn.Module) -> None:
    """Let each layer run again in the backward pass, instead of keeping its activations."""
    causal_model(network).gradient_checkpointing_enable(
        {"use_reentrant": False, "context_fn": _contexts}
    )


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` of torch.utils.checkpoint: contexts of a layer's first and second forward run.

    The second run has the same active pass as the first, so that the layer's loss is computed
    again. Results of operators in the namespace `relation_kl` are kept from the first run: they are
    small, and expensive to compute. A backend without an operator (chunked, reference) runs again.
    """
    running = active_pass()
    if running is None:
        return nullcontext(), nullcontext()
    kept: deque[Any] = deque()
    return _Keeping(kept, again=False), _second_run(running, kept)


@contextmanager
def _second_run(layer_pass: LayerPass, kept: deque[Any]) -> Iterator[None]:
    with _Keeping(kept, again=True), layer_pass.again():
        yield


# torch's own selective checkpointing counts every operator and fails if the second run has more of
# one. Under ZeRO-3 it does: weights are fetched and freed at other points than in the first run.


class _Keeping(TorchDispatchMode):
    """Keeps the results of relation operators, in the order of their calls.

    `again` returns the kept results instead of computing them again.
    """

    def __init__(self, kept: deque[Any], *, again: bool) -> None:
        super().__init__()
        self._kept, self._again = kept, again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keeps = func.namespace == "relation_kl"
        if keeps and self._again:
            return self._kept.popleft()
        results = func(*args, **(kwargs or {}))
        if keeps:
            self._kept.append(tree_map_only(Tensor, Tensor.detach, results))
        return results
