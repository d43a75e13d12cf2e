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

from kernels import cached_attention
from src.evals import decoding, slots
from src.evals.generation import KeptRows
from tests.interpreted import liger_kernels
from tests.src.evals.generating import generate

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
            changed = [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
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


def attended(
    query_bghd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    counts: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """What flash attention makes of counts, sequence by sequence."""
    query, key, value = (x.flatten(0, 1) for x in (query_bghd, key_bgsd, value_bgsd))
    slots = key.shape[1]
    number = counts.shape[1] - 1
    assert counts[1].flatten().tolist() == list(range(number + 1))
    assert counts[2].flatten().tolist() == [i * slots for i in range(number + 1)]
    rows = []
    for row, end in enumerate(counts[0, :-1].flatten().tolist()):
        seen = slice(0 if window is None else max(0, end - window), end)
        scores = query[row] @ key[row, seen].T * (scale or query.shape[-1] ** -0.5)
        rows.append(scores.softmax(-1) @ value[row, seen])
    return torch.stack(rows)


@pytest.fixture
def by_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention on a CPU, and a host that looks at what was written before."""
    monkeypatch.setattr(decoding, "flash_takes", lambda model: True)
    monkeypatch.setattr(slots, "_flash_attention", attended)
    monkeypatch.setattr(decoding.Rows, "is_ahead", True)


@pytest.mark.parametrize("family", ["small_llama", "small_mistral", "small_gemma"])
def test_attention_by_counts_writes_what_a_mask_writes(
    family: str, byte_tokenizer: Any, request: pytest.FixtureRequest, by_counts: None
) -> None:
    model = request.getfixturevalue(family)
    kept = KeptRows()

    def ask(prompts: list[str], room: int, end: int = 99) -> list[str]:
        def enough(number: int, text: str) -> bool:
            return number == 0 and len(text) >= end

        rooms = [room] * len(prompts)
        options = {"window": 512, "enough": enough}
        return generate(model, byte_tokenizer, prompts, rooms, kept=kept, **options)

    # The second batch is shorter and has idle rows.
    asked = [(PROMPTS, 40, 8), (PROMPTS[1:3], 17, 99), (PROMPTS[:3], 40, 20)]
    answers = [ask(*each) for each in asked]
    rows = kept.rows
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decoding, "flash_takes", lambda model: False)
        patched.setattr(decoding.Rows, "is_ahead", False)
        kept = KeptRows()
        assert [ask(*each) for each in asked] == answers
    assert rows is not None
    assert len(rows) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is interpreted on a CPU only")
def test_fused_kernels_write_what_others_write(
    small_mistral: Any, byte_tokenizer: Any, by_counts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    sizes = small_mistral.config.to_dict() | {"head_dim": 16, "num_hidden_layers": 2}
    model = MistralForCausalLM(MistralConfig(**sizes)).eval()
    monkeypatch.setattr(decoding, "_READ_MULTIPLE", 16)
    prompts, rooms = [prompt[:9] for prompt in PROMPTS], [8] * 4
    launched: list[int | None] = []
    ordinary = cached_attention.cached_attention

    def attention(*args: Any, **options: Any) -> torch.Tensor:
        launched.append(options["window"])
        return ordinary(*args, **options)

    monkeypatch.setattr(cached_attention, "cached_attention", attention)

    def answers(**options: Any) -> list[str]:
        return generate(model, byte_tokenizer, prompts, rooms, window=512, **options)

    plain = answers()
    assert not launched
    with liger_kernels():
        assert answers(fused=True) == plain
    assert launched == 7 * 2 * [model.config.sliding_window]


@pytest.mark.parametrize("family", ["small_llama", "small_gemma"])
def test_prompts_that_are_read_in_parts_are_answered_alike(
    family: str, request: pytest.FixtureRequest
) -> None:
    prompts = [[(7 * at + n) % 250 for at in range(n)] for n in (9, 40, 3, 26, 17)]

    def written(read_at_once: int) -> list[list[int]]:
        rows = decoding.Rows(request.getfixturevalue(family), (len(prompts), 64), 8)
        rows.read(prompts, read_at_once)
        for _ in range(7):
            rows.step()
        return rows.written_bn.tolist()

    together = written(5)
    assert len({tuple(row) for row in together}) > 1
    assert written(2) == written(1) == together


def test_rows_that_fit_are_used_again_with_what_was_recorded(
    small_llama: Any, byte_tokenizer: Any, by_counts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptRows()
    made: list[tuple[int, int]] = []
    rows_of = decoding.Rows

    def counted(model: Any, size: tuple[int, int], room: int, **options: Any) -> decoding.Rows:
        made.append(size)
        return rows_of(model, size, room, **options)

    monkeypatch.setattr(decoding, "Rows", counted)
    for prompts, room in ((PROMPTS, 40), (PROMPTS[:2], 9), (PROMPTS, 30), (["x" * 90], 40)):
        generate(small_llama, byte_tokenizer, prompts, [room] * len(prompts), window=512, kept=kept)
    assert made == [(4, 77), (1, 130)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention runs on a GPU")
@pytest.mark.parametrize("window", [None, 24])
def test_flash_attention_takes_counts(window: int | None) -> None:
    query, key, value = (
        torch.randn(5, 3, size, 64, device="cuda", dtype=torch.bfloat16) for size in (4, 256, 256)
    )
    at_b1 = torch.tensor([[0], [7], [100], [254], [255]], device="cuda")
    counts = slots.key_counts(at_b1, 3, 256)
    got = slots._flash_attention(query, key, value, counts, None, window)
    wanted = attended(*(x.double() for x in (query, key, value)), counts, None, window)
    torch.testing.assert_close(got.double(), wanted, atol=1e-2, rtol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention runs on a GPU")
def test_replayed_tokens_by_counts_are_those_of_a_mask(
    small_llama: Any, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = small_llama.config.to_dict() | {"head_dim": 16, "dtype": "bfloat16"}
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to("cuda", torch.bfloat16).eval()
    kept = KeptRows()
    options = {"window": 512, "kept": kept}
    twice = [generate(model, byte_tokenizer, PROMPTS, [24] * 4, **options) for _ in range(2)]
    assert twice[0] == twice[1]
    assert kept.rows is not None
    assert kept.rows._graph is not None
    monkeypatch.setattr(decoding, "flash_takes", lambda model: False)
    by_mask = generate(model, byte_tokenizer, PROMPTS, [24] * 4, window=512)
    # Rounding may turn a token over, but not the first ones of all rows.
    assert [text[:2] for text in by_mask] == [text[:2] for text in twice[0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize(("dtype", "alike"), [(torch.float32, 24), (torch.bfloat16, 2)])
def test_fused_kernels_are_recorded_and_replayed(
    dtype: torch.dtype, alike: int, small_llama: Any, byte_tokenizer: Any
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = small_llama.config.to_dict() | {"head_dim": 16, "dtype": str(dtype)[6:]}
    torch.manual_seed(2)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to("cuda", dtype).eval()
    plain = generate(model, byte_tokenizer, PROMPTS, [24] * 4, window=512)
    kept = KeptRows()
    options = {"window": 512, "kept": kept, "fused": True}
    twice = [generate(model, byte_tokenizer, PROMPTS, [24] * 4, **options) for _ in range(2)]
    assert twice[0] == twice[1]
    assert kept.rows is not None
    assert kept.rows._graph is not None
    # In half precision, rounding may turn a token over, but not the first ones of all rows.
    assert [text[:alike] for text in plain] == [text[:alike] for text in twice[0]]
