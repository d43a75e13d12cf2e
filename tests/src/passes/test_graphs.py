"""A recorded micro-step gives the losses and gradients of one that runs kernel by kernel.

Without a GPU, `Retraced` stands in for a CUDA graph: its replay computes anew what was recorded,
from the tensors that the graph reads and into those that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.objectives.base import Batch
from src.passes import graphs
from src.passes.graphs import WARM_UP, GraphError, MicroStepGraphs

CUDA = torch.cuda.is_available()


class Tied(nn.Module):
    """An embedding that is also the output head, a layer, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.layer, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, ids_bt: Tensor) -> Tensor:
        return self.frozen(self.layer(self.embedding(ids_bt)).tanh()) @ self.embedding.weight.T


def compute(module: nn.Module, scale: float = 1.0) -> Callable[[Batch], Any]:
    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits_btv = module(batch.input_ids_bt)
        value = scale * nn.functional.cross_entropy(
            logits_btv.flatten(0, 1), batch.input_ids_bt.flatten()
        )
        if batch.position_ids_bt is not None:
            value = value * batch.position_ids_bt.float().mean()
        return value, {"twice": 2 * value.detach()}

    return loss


class Retraced:
    """Stands in for a CUDA graph."""

    def __init__(self) -> None:
        self.again: Callable[[], None] | None = None

    def replay(self) -> None:
        assert self.again is not None
        self.again()

    def pool(self) -> None:
        return None


@pytest.fixture
def retraced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts recordings; replays compute what was recorded again, into the recorded tensors."""
    counted: list[int] = []
    if CUDA:
        return counted

    @contextmanager
    def recorded(graph: Retraced, **settings: object) -> Iterator[None]:
        assert settings["capture_error_mode"] == "thread_local"
        counted.append(1)
        yield

    ordinary = MicroStepGraphs._record

    def record(self: MicroStepGraphs, batch: Batch, computed: Any) -> Any:
        made = ordinary(self, batch, computed)

        def again() -> None:
            with torch.enable_grad():
                loss, metrics = computed(made.batch)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            made.loss.copy_(loss.detach())
            for name, value in metrics.items():
                made.metrics[name].copy_(value)
            for old, new in zip(made.gradients, gradients, strict=True):
                assert (old is None) == (new is None)
                if old is not None:
                    old.copy_(new)

        made.graph.again = again
        return made

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Retraced)
    monkeypatch.setattr(torch.cuda, "graph", recorded)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(MicroStepGraphs, "_record", record)
    return counted


def batches(count: int, shape: tuple[int, int] = (2, 5), *, skipping: bool = False) -> list[Batch]:
    generator = torch.Generator().manual_seed(shape[1])
    device = "cuda" if CUDA else "cpu"
    ids = [torch.randint(0, 11, shape, generator=generator).to(device) for _ in range(count)]
    return [Batch(x, x + 1 if skipping else None) for x in ids]


@pytest.mark.parametrize("skipping", [False, True], ids=["contiguous", "skipping"])
def test_replays_give_the_losses_and_gradients_of_plain_micro_steps(
    retraced: list[int], skipping: bool
) -> None:
    torch.manual_seed(0)
    module = Tied().to("cuda" if CUDA else "cpu")
    recorder = MicroStepGraphs(module, ["it"])
    for batch in batches(WARM_UP + 4, skipping=skipping):
        expected, _ = compute(module)(batch)
        module.zero_grad()
        (0.25 * expected).backward()
        wanted = {name: p.grad for name, p in module.named_parameters()}
        module.zero_grad()
        loss, metrics = recorder.run("it", batch, compute(module))
        (0.25 * loss).backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(metrics["twice"], 2 * expected.detach())
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], msg=name)
    assert module.unused.weight.grad is None
    assert CUDA or retraced == [1]


def test_each_stream_and_shape_has_a_graph_of_its_own(retraced: list[int]) -> None:
    module = Tied().to("cuda" if CUDA else "cpu")
    recorder = MicroStepGraphs(module, "ab")
    for _ in range(WARM_UP + 2):
        for stream, shape, scale in (("a", (2, 5), 1.0), ("b", (2, 5), 3.0), ("a", (1, 7), 1.0)):
            (batch,) = batches(1, shape)
            loss, _ = recorder.run(stream, batch, compute(module, scale))
            torch.testing.assert_close(loss, compute(module, scale)(batch)[0])
    assert CUDA or len(retraced) == 3


def test_graphs_and_micro_steps_without_one_do_not_hold_memory_together(
    retraced: list[int],
) -> None:
    module = Tied().to("cuda" if CUDA else "cpu")
    recorder = MicroStepGraphs(module, ["a", "b"])
    (long,), (short,) = batches(1), batches(1, (1, 3))

    def run(stream: str, batch: Batch) -> None:
        loss, _ = recorder.run(stream, batch, compute(module))
        torch.testing.assert_close(loss, compute(module)(batch)[0])

    for _ in range(WARM_UP + 3):
        run("a", long)
    assert not recorder._recorded, "b has not warmed up"
    for _ in range(WARM_UP):
        run("b", long)
    run("a", long)
    run("b", long)
    assert len(recorder._recorded) == 2
    run("b", short)
    assert not recorder._recorded, "a shape that was not seen before"
    run("a", long)
    assert len(recorder._recorded) == 1


def test_memory_that_is_short_is_said_as_it_is(
    retraced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = MicroStepGraphs(Tied().to("cuda" if CUDA else "cpu"), ["it"])

    def full(*_: object, **__: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "functional_call", full)
    (batch,) = batches(1)
    for _ in range(WARM_UP):
        recorder.run("it", batch, compute(recorder._module))
    with pytest.raises(torch.OutOfMemoryError):
        recorder.run("it", batch, compute(recorder._module))


def _ends_badly() -> Any:
    """As a recording does whose memory has run out."""
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    except torch.OutOfMemoryError:
        # Without `from`, as a context manager that fails at its end.
        raise RuntimeError("CUDA error: operation failed due to a previous error")  # noqa: B904


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        "hidden",
    ],
    ids=["torch", "cublas", "triton", "hidden"],
)
def test_every_kind_of_short_memory_is_told_from_what_cannot_be_recorded(
    error: Any, retraced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = MicroStepGraphs(Tied().to("cuda" if CUDA else "cpu"), ["it"])

    def fails(*_: object, **__: object) -> Any:
        if error == "hidden":
            _ends_badly()
        raise error

    monkeypatch.setattr(graphs, "functional_call", fails)
    (batch,) = batches(1)
    for _ in range(WARM_UP):
        recorder.run("it", batch, compute(recorder._module))
    with pytest.raises(torch.OutOfMemoryError, match=r"too little memory .*micro_batch"):
        recorder.run("it", batch, compute(recorder._module))


def test_auto_goes_on_kernel_by_kernel_and_says_why(
    retraced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Tied().to("cuda" if CUDA else "cpu")
    recorder = MicroStepGraphs(module, ["it"], required=False)

    def fails(*_: object, **__: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    (batch,) = batches(1)
    expected, _ = compute(module)(batch)
    for _ in range(WARM_UP):
        recorder.run("it", batch, compute(module))
    with monkeypatch.context() as broken:
        broken.setattr(graphs, "functional_call", fails)
        with pytest.warns(UserWarning, match="not permitted.*launched one by one from now on"):
            loss, _ = recorder.run("it", batch, compute(module))
    assert float(loss) == float(expected)
    recorded = len(retraced)
    loss, _ = recorder.run("it", batch, compute(module))
    assert float(loss) == float(expected)
    assert len(retraced) == recorded


def test_weights_that_change_are_read_anew(retraced: list[int]) -> None:
    module = Tied().to("cuda" if CUDA else "cpu")
    recorder = MicroStepGraphs(module, ["it"])
    (batch,) = batches(1)
    for _ in range(WARM_UP + 1):
        before, _ = recorder.run("it", batch, compute(module))
    with torch.no_grad():
        module.layer.weight.mul_(3.0)
    after, _ = recorder.run("it", batch, compute(module))
    torch.testing.assert_close(after, compute(module)(batch)[0])
    assert not torch.allclose(before, after)


def test_what_cannot_be_recorded_names_the_setting(
    retraced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Tied().to("cuda" if CUDA else "cpu")
    recorder = MicroStepGraphs(module, ["it"])
    calls: list[int] = []

    def failing(batch: Batch) -> Any:
        calls.append(1)
        if len(calls) > WARM_UP:
            raise RuntimeError("operation not permitted when stream is capturing")
        return compute(module)(batch)

    (batch,) = batches(1)
    for _ in range(WARM_UP):
        recorder.run("it", batch, failing)
    with pytest.raises(GraphError, match=r"engine\.cuda_graphs.*not permitted.*cuda_graphs=false"):
        recorder.run("it", batch, failing)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_dropout_draws_new_masks_that_the_seed_fixes() -> None:
    class Dropped(Tied):
        def forward(self, ids_bt: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(ids_bt), 0.5)

    module = Dropped().cuda()
    recorder = graphs.MicroStepGraphs(module, ["it"])
    (batch,) = batches(1)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(recorder.run("it", batch, compute(module))[0])

    plain = [loss(seed) for seed in range(WARM_UP)]
    replayed = [loss(seed) for seed in (0, 1, 2, 0)]
    assert replayed[:2] == pytest.approx(plain)
    assert replayed[0] == replayed[3]
    assert replayed[0] != replayed[1] != replayed[2]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_recording_that_breaks_off_leaves_dropout_working() -> None:
    module = Tied().cuda()
    recorder = graphs.MicroStepGraphs(module, ["it"], required=False)
    (batch,) = batches(1)
    calls: list[int] = []

    def asks_the_host(given: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(1)
        loss, metrics = compute(module)(given)
        loss = nn.functional.dropout(loss[None], 0.5).sum()
        if len(calls) == WARM_UP + 1:
            loss.item()
        return loss, metrics

    for _ in range(WARM_UP):
        recorder.run("it", batch, asks_the_host)
    with pytest.warns(UserWarning, match="launched one by one from now on"):
        loss, _ = recorder.run("it", batch, asks_the_host)
    for _ in range(3):
        loss, _ = recorder.run("it", batch, asks_the_host)
        loss.backward()
    assert loss.isfinite()
