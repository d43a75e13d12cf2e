"""CUDA graphs of whole micro-steps: teacher, student, loss and gradients.

A micro-step of a small model launches thousands of kernels of a few microseconds each, and the host
takes longer to launch them than the GPU to run them. Blocks have one shape, so the launches are
recorded once and replayed together. The engine sees an ordinary autograd function whose backward
hands over the recorded gradients, so DeepSpeed accumulates and reduces them as usual.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from src.objectives.base import Batch

# The loss of a batch, and its metrics by name.
Compute = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]

# Micro-steps of a shape that run without a graph first: kernels are compiled and libraries set up
# in them, and a shape that does not come again is never recorded.
WARM_UP = 2


class GraphError(RuntimeError):
    """A micro-step could not be recorded."""


class _Recorded(NamedTuple):
    """A graph, the tensors that it reads, and the tensors that it writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    loss: Tensor
    metrics: dict[str, Tensor]
    gradients: tuple[Tensor | None, ...]


class MicroStepGraphs:
    """Records micro-steps, one graph for each stream and shape of its blocks, and replays them.

    Dropout draws new masks in each replay: CUDA graphs read the generator's seed and offset anew.

    All graphs share one pool of memory, as large as the largest micro-step needs. A micro-step that
    runs without a graph needs as much again. So nothing is recorded until every stream has warmed
    up, and graphs are dropped before a shape runs that was not seen before, such as a stage's last
    and shorter block.

    Args:
        module: has all trained parameters.
        streams: the names of the stage's streams.
        required: whether a micro-step that cannot be recorded is an error. Otherwise it is
            launched kernel by kernel, as all after it are, and a warning says why. Micro-steps of
            packed blocks are then launched so too: their tensors have fixed shapes, but recording
            them has not been tried on a GPU yet. They keep a stage's others from being recorded.
    """

    def __init__(self, module: nn.Module, streams: Iterable[str], *, required: bool = True) -> None:
        self._required, self._gave_up = required, False
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._module = module
        self._names, self._parameters = tuple(trained), tuple(trained.values())
        self._streams = frozenset(streams)
        self._recorded: dict[Any, _Recorded] = {}
        self._seen: dict[Any, int] = {}
        self._pool: Any = None

    def run(self, stream: str, batch: Batch, compute: Compute) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-step, ready for backward, and its metrics.

        The metrics are overwritten by the next micro-step of the same shape.

        Raises:
            GraphError: the micro-step does something that CUDA graphs cannot record.
            OutOfMemoryError: there is too little memory to record it.
        """
        if self._gave_up or (batch.segments is not None and not self._required):
            return compute(batch)
        key = (stream, *(x.shape for x in _inputs(batch)))
        recorded = self._recorded.get(key)
        if recorded is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            warm = {seen for (seen, *_), times in self._seen.items() if times >= WARM_UP}
            if self._seen[key] <= WARM_UP or not warm >= self._streams:
                self._drop()
                return compute(batch)
            try:
                recorded = self._recorded[key] = self._record(batch, compute)
            except (GraphError, torch.OutOfMemoryError) as error:
                if self._required:
                    raise
                self._give_up(error)
                return compute(batch)
        for read, given in zip(_inputs(recorded.batch), _inputs(batch), strict=True):
            read.copy_(given)
        loss: Any = _Replay.apply(recorded, *self._parameters)
        return loss, recorded.metrics

    def _drop(self) -> None:
        """Give the graphs' memory back."""
        if self._recorded:
            torch.cuda.synchronize()
            self._recorded.clear()
            self._pool = None
            torch.cuda.empty_cache()

    def _give_up(self, error: Exception) -> None:
        """Launch kernel by kernel from now on, and say why."""
        self._gave_up = True
        self._drop()
        _leave_capture()
        warnings.warn(
            f"{error}. engine.cuda_graphs=auto: kernels are launched one by one from now on",
            stacklevel=2,
        )

    def _record(self, batch: Batch, compute: Compute) -> _Recorded:
        read: Batch = tree_map_only(Tensor, Tensor.clone, batch)
        # DeepSpeed keeps the parameters' gradient accumulators alive, and these belong to the
        # stream that they were made on. Aliases of the parameters get accumulators of their own.
        aliases = [p.detach().requires_grad_() for p in self._parameters]
        named = {f"module.{n}": alias for n, alias in zip(self._names, aliases, strict=True)}
        computing = _Computing(self._module, compute)
        # What the warm-up has cached cannot be used inside a graph's own memory.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss, metrics = functional_call(computing, named, (read,))
                gradients = torch.autograd.grad(loss, aliases, allow_unused=True)
        except RuntimeError as error:
            if memory_is_short(error):
                raise torch.OutOfMemoryError(
                    f"engine.cuda_graphs: there is too little memory to record a micro-step "
                    f"({error}); use a smaller engine.student.micro_batch, or set "
                    "engine.cuda_graphs=false"
                ) from error
            raise GraphError(
                f"engine.cuda_graphs: this micro-step cannot be recorded ({error}); set "
                "engine.cuda_graphs=false"
            ) from error
        self._pool = graph.pool()
        metrics = {name: value.detach() for name, value in metrics.items()}
        return _Recorded(graph, read, loss.detach(), metrics, gradients)


def memory_is_short(error: BaseException) -> bool:
    """Whether an error, or one that it came with, is of memory.

    A recording that has failed ends with an error of its own, which hides the one that it came
    with. Libraries have errors of memory that are not torch's.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError) or _NO_MEMORY.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


_NO_MEMORY = re.compile(r"out of memory|ALLOC_FAILED", re.IGNORECASE)


def _leave_capture() -> None:
    """Let the GPU's generator draw again: a recording that was broken off leaves it waiting."""
    if torch.cuda.is_available():
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())


def _inputs(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order; which of them a stream's batches have does not change."""
    return [x for x in tree_leaves(batch) if isinstance(x, Tensor)]


class _Computing(nn.Module):
    """A computation with a module, whose parameters `functional_call` can replace."""

    def __init__(self, module: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.module, self.compute = module, compute

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.compute(batch)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *parameters: Tensor) -> Tensor:
        recorded.graph.replay()
        ctx.gradients = recorded.gradients
        return recorded.loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (factor,) = upstream
        made = [g for g in ctx.gradients if g is not None]
        scaled = iter(torch._foreach_mul(made, factor))  # pyright: ignore[reportPrivateImportUsage]
        return None, *(None if g is None else next(scaled) for g in ctx.gradients)
