"""Tokens replayed from a recorded step are those of steps that run one by one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.evals import decoding
from src.evals.generation import generate

PROMPTS = ["The lamp went out", "Nobody on the pier said a word before", "A", "Who would"]


class FakeGraph:
    """Does what a CUDA graph does, with a CPU's operations: the same memory, no Python."""

    recorded = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for operation, args, kwargs, result in self.calls:
            read = {_memory(leaf) for leaf in tree_leaves((args, kwargs))}
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and _memory(old) not in read:
                    old.copy_(new)


def _memory(leaf: Any) -> int | None:
    return leaf.untyped_storage().data_ptr() if isinstance(leaf, torch.Tensor) else None


class Recording(TorchDispatchMode):
    """Notes operations; what they have changed is put back at the end."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            changed = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.before += [(tensor, tensor.clone()) for tensor in changed]
        result = func(*args, **kwargs)
        self.graph.calls.append((func, args, kwargs, result))
        return result


@pytest.fixture
def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    """CUDA graphs on a CPU."""

    @contextmanager
    def record(graph: FakeGraph, **options: Any) -> Iterator[None]:
        assert options == {"capture_error_mode": "thread_local"}
        recording = Recording(graph)
        with recording:
            yield
        for tensor, before in reversed(recording.before):
            tensor.copy_(before)
        FakeGraph.recorded += 1

    monkeypatch.setattr(decoding, "_has_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(FakeGraph, "recorded", 0)
    return FakeGraph


@pytest.mark.parametrize(
    "family", ["small_llama", "small_llama_eager", "small_mistral", "small_gemma"]
)
def test_a_replayed_step_writes_what_a_step_of_its_own_writes(
    family: str,
    byte_tokenizer: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    fake_graphs: type[FakeGraph],
) -> None:
    model = request.getfixturevalue(family)

    def answers() -> list[str]:
        looks = [0] * len(PROMPTS)

        def enough(number: int, text: str) -> bool:
            # First one row leaves, for which nothing is recorded anew, then two more.
            looks[number] += 1
            return looks[number] == (9, 1, 2, 2)[number]

        return generate(model, byte_tokenizer, PROMPTS, [40] * 4, window=512, enough=enough)

    replayed = answers()
    assert fake_graphs.recorded == 2
    monkeypatch.setattr(decoding, "_has_graphs", lambda device: False)
    assert answers() == replayed
    assert len(set(replayed)) == 4


def test_what_cannot_be_recorded_is_launched_and_said(
    small_llama: Any,
    small_stretched: Any,
    byte_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    fake_graphs: type[FakeGraph],
) -> None:
    with pytest.warns(UserWarning, match="its RoPE is computed anew"):
        generate(small_stretched, byte_tokenizer, PROMPTS, [9] * 4, window=256)
    plain = generate(small_llama, byte_tokenizer, PROMPTS, [1] * 4, window=512)
    assert fake_graphs.recorded == 0
    forward = small_llama.forward

    def asking(**inputs: Any) -> Any:
        assert inputs["input_ids"].max().item() >= 0
        return forward(**inputs)

    monkeypatch.setattr(small_llama, "forward", asking)
    with pytest.warns(UserWarning, match="kernel by kernel, not replayed .* not permitted"):
        launched = generate(small_llama, byte_tokenizer, PROMPTS, [9] * 4, window=512)
    assert fake_graphs.recorded == 0
    assert [text[:1] for text in launched] == [text[:1] for text in plain]
    monkeypatch.setattr(small_llama, "forward", forward)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(small_llama, byte_tokenizer, PROMPTS, [9] * 4, window=512) == launched
