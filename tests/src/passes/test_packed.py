"""Packed blocks: losses and gradients are those of documents that run alone; nothing leaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src import objectives as registry
from src.data.blocks import Blocks
from src.models.adapters import FullParameters, causal_model
from src.models.families import FAMILIES
from src.models.shapes import facts_of
from src.objectives.base import Batch, Objective
from src.objectives.language_modeling import LanguageModeling
from src.objectives.logit_distillation import LogitDistillation
from src.objectives.longce import LongCE
from src.objectives.longred import LongRed
from src.objectives.relation import Relation, RelationWeights
from src.objectives.weighted_sum import WeightedSum
from src.passes.capture import attention_name
from src.passes.preparation import prepare_decoder
from src.passes.student import StudentModule
from src.passes.teacher import TeacherModule
from src.training.batches import Batches
from src.training.positions import Positions
from src.training.repeats import Repeats
from src.training.schedule import StageConfig, StageSchedule, StreamConfig
from src.training.sequence import NOTHING, Place, next_tokens
from tests.conftest import by_default
from tests.src.passes import test_passes as networks

LENGTH = 12
# Whole blocks and pieces; the fourth document is longer than the sliding windows, which see 5.
SIZES = [7, 3, 12, 11, 1, 26, 4, 9]
OBJECTIVES: dict[str, Objective] = {
    "relation": Relation("relation", RelationWeights(1.0, 0.5, 2.0, 0.7)),
    "reference": Relation("relation", RelationWeights(qk=1), normalization="reference"),
    "relation-heads": Relation("relation", relation_heads=4, layers="last", temperature=2.0),
    "longred": LongRed("longred", (1, 3)),
    "longred-last": LongRed("longred", "last"),
    "logits": LogitDistillation("logit_distillation", chunk=5),
    "language": LanguageModeling("language_modeling", chunk=5),
}
# Cross-entropy and cosines are in float32, and so are norms, whose rounding may flip.
CLOSE = {"relation": {"rtol": 1e-5, "atol": 1e-9}, "": {"rtol": 1e-4, "atol": 1e-6}}
CLOSE |= {"reference": CLOSE["relation"], "relation-heads": CLOSE["relation"]}


def documents(sizes: Sequence[int] = SIZES) -> list[tuple[str, np.ndarray]]:
    draw = np.random.default_rng(3)
    return [(f"d{n}", draw.integers(0, 97, size)) for n, size in enumerate(sizes)]


def module(
    family: str, objective: Objective, *, attention: str = "sdpa", checkpointing: bool = False
) -> tuple[StudentModule, TeacherModule]:
    facts = facts_of(networks.config(family, factor=None))
    student = networks.trained_network(family, FullParameters("full"), checkpointing=checkpointing)
    taught = networks.network(family)
    needs = objective.needs(facts)
    for network in (student, taught):
        if attention != "sdpa":
            causal_model(network).set_attn_implementation(attention_name(attention))
        ends = {needs.stops_at, needs.teacher_stops_at}
        prepare_decoder(causal_model(network).get_decoder(), ends)
    head = taught.get_output_embeddings() if needs.teacher_head else None
    return StudentModule(student, {"it": objective}, facts), TeacherModule(taught, "qkv", head)


def stage_batches(
    blocks: Blocks,
    *,
    tokens: int,
    positions: Positions = "contiguous",
    repeats: Repeats | None = None,
) -> Batches:
    stream = StreamConfig("it", LENGTH, positions=positions, repeats=repeats)
    per_step = -(-tokens // LENGTH) * LENGTH
    stage = StageConfig(tokens, per_step, 1.0, 0, 1.0, FullParameters("full"), {"it": stream})
    schedule = StageSchedule(stage)
    cpu = torch.device("cpu")
    return Batches("stage", schedule, {"it": blocks}, Place(), cpu, seed=0, window=48)


def step_loss(
    made: tuple[StudentModule, TeacherModule], batches: Batches, *, ranks: int, micro_batch: int
) -> Tensor:
    """The loss of one step over all ranks, as the loop and DeepSpeed's mean make it."""
    student, teacher = made
    schedule, total = batches.schedule, torch.zeros((), dtype=torch.float64)
    for rank in range(ranks):
        for micro in schedule.micro_steps(0, rank=rank, world_size=ranks, micro_batch=micro_batch):
            loss, _ = student(batches.of(micro, 0), "it", teacher)
            total = total + loss * len(micro.pieces) * micro.tokens / schedule.tokens_at(0)
    return total


def alone(made: tuple[StudentModule, TeacherModule], batches: Batches, name: str) -> Tensor:
    """The same loss from each document's tokens in a pass of its own."""
    student, teacher = made
    total, counted = torch.zeros((), dtype=torch.float64), 0
    for piece in batches.schedule.pieces(0):
        block, start = batches.blocks["it"][piece.block], 0
        for size in batches.blocks["it"].segments(piece.block):
            ids_bt = torch.from_numpy(block[start : start + size])[None]
            start += size
            weight = size - 1 if name == "language" else size
            if weight:
                loss, _ = student(Batch(ids_bt), "it", teacher)
                total = total + loss * weight
                counted += weight
    return total / counted


def same(found: Tensor, expected: Tensor, network: nn.Module, name: str) -> None:
    close = CLOSE.get(name, CLOSE[""])
    assert float(expected.detach()) > 1e-3
    torch.testing.assert_close(found, expected, **close)
    ours, theirs = (networks.gradients(loss, network) for loss in (found, expected))
    assert any(gradient.abs().max() > 1e-6 for gradient in theirs.values())
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, **close)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OBJECTIVES)
@by_default(
    lambda family, name: (
        family == "llama"
        or (family, name) == ("mistral", "relation")
        or (family == "gemma3" and name in ("relation", "logits", "language"))
    )
)
def test_losses_and_gradients_are_those_of_documents_alone(family: str, name: str) -> None:
    blocks = Blocks(documents(), LENGTH, seed=1, stream="it", packing=True)
    assert len(blocks) == 7
    assert blocks.most_segments >= 3
    made = module(family, OBJECTIVES[name])
    batches = stage_batches(blocks, tokens=LENGTH * len(blocks))
    found = step_loss(made, batches, ranks=1, micro_batch=2)
    same(found, alone(made, batches, name), made[0], name)


def test_every_objective_is_here_or_refuses_packed_blocks() -> None:
    """A new objective needs a line in `OBJECTIVES` above, and in those of test_sequence.py."""
    refusing: list[Objective] = [
        LongCE("longce"),
        Relation("relation", RelationWeights(av=1.0)),
        Relation("relation", teacher_chunk=8),
        LogitDistillation("logit_distillation", last_tokens=4),
    ]
    assert all(objective.needs_whole_documents() for objective in refusing)
    assert not any(objective.needs_whole_documents() for objective in OBJECTIVES.values())
    known = {type(objective) for objective in (*refusing, *OBJECTIVES.values())}
    assert known == set(registry.OBJECTIVES)


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 7), (2, 1), (2, 2)])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@by_default(
    lambda ranks, micro_batch, name, family: (
        family == ("llama" if ranks == 1 else "mistral")
        and ((ranks, micro_batch) != (2, 2) or name in ("relation", "language"))
    )
)
def test_ranks_and_micro_batches_change_nothing(
    ranks: int, micro_batch: int, name: str, family: str
) -> None:
    """Blocks have other numbers of documents, so of predicted tokens; the last one is cut."""
    blocks = Blocks(documents(), LENGTH, seed=1, stream="it", packing=True)
    made = module(family, OBJECTIVES[name])
    batches = stage_batches(blocks, tokens=LENGTH * len(blocks) - 5)
    expected = step_loss(made, batches, ranks=1, micro_batch=1)
    found = step_loss(made, batches, ranks=ranks, micro_batch=micro_batch)
    same(found, expected, made[0], name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
def test_no_gradient_crosses_a_border(attention: str, checkpointing: bool) -> None:
    """The last document's outputs do not move with the tokens of the others, and reversed."""
    made, _ = module(
        "gemma3", OBJECTIVES["language"], attention=attention, checkpointing=checkpointing
    )
    sizes = [5, 4, 3]
    blocks = Blocks(documents(sizes), LENGTH, seed=0, stream="it", packing=True)
    batches = stage_batches(blocks, tokens=LENGTH)
    (micro,) = batches.schedule.micro_steps(0, rank=0, world_size=1, micro_batch=1)
    embedded: list[Tensor] = []
    hidden: list[Tensor] = []
    decoder: Any = causal_model(made.network).get_decoder()

    def keep(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        del module, given
        embedded.append(out.detach().requires_grad_())
        return embedded[-1]

    decoder.embed_tokens.register_forward_hook(keep)
    decoder.norm.register_forward_hook(lambda module, given, out: hidden.append(out))
    start = 0
    for size in sizes:
        embedded.clear()
        hidden.clear()
        made(batches.of(micro, 0), "it", None)
        inside = slice(start, start + size)
        weights = torch.linspace(0.5, 2.0, hidden[0].shape[-1], dtype=torch.float64)
        (hidden[0][0, inside] * weights).sum().backward()
        assert embedded[0].grad is not None
        moved_t = embedded[0].grad[0].abs().amax(-1) > 0
        expected = torch.zeros(LENGTH, dtype=torch.bool)
        expected[inside] = True
        assert torch.equal(moved_t, expected)
        start += size


def test_repeats_stay_within_a_document_and_end_where_a_block_is_cut() -> None:
    sizes = np.cumsum(SIZES)
    starts = [0, *sizes[:-1]]
    # Every token says which document it is of, and where it stands there.
    texts = [(f"d{n}", np.arange(a, b)) for n, (a, b) in enumerate(zip(starts, sizes, strict=True))]
    blocks = Blocks(texts, LENGTH, seed=1, stream="it", packing=True)
    repeats = Repeats(0.5, 2, 3)
    batches = stage_batches(blocks, tokens=LENGTH * len(blocks) - 5, repeats=repeats)
    changed = 0
    for piece in batches.schedule.pieces(0):
        original_t = blocks[piece.block][: piece.tokens]
        made_t = batches.tokens(piece)
        assert len(made_t) == piece.tokens
        assert (made_t <= original_t).all()
        whole_t = batches.tokens(piece._replace(tokens=LENGTH))
        assert np.array_equal(whole_t[: piece.tokens], made_t)
        changed += int((made_t != original_t).sum())
        documents_of = [np.searchsorted(sizes, t, side="right") for t in (original_t, made_t)]
        assert np.array_equal(*documents_of)
    assert changed > LENGTH
    micro = next(batches.schedule.micro_steps(0, rank=0, world_size=1, micro_batch=1))
    assert batches.of(micro, 0).input_ids_bt.tolist() == [batches.tokens(micro.pieces[0]).tolist()]


@pytest.mark.parametrize("positions", ["cream", "uniform", "pose"])
def test_skipped_positions_begin_anew_in_each_document(positions: Positions) -> None:
    blocks = Blocks(documents(), LENGTH, seed=1, stream="it", packing=True)
    batches = stage_batches(blocks, tokens=LENGTH * len(blocks), positions=positions)
    skipped = False
    for micro in batches.schedule.micro_steps(0, rank=0, world_size=1, micro_batch=1):
        batch = batches.of(micro, 0)
        assert batch.position_ids_bt is not None
        assert batch.contiguous_bt is not None
        start = 0
        for size in blocks.segments(micro.pieces[0].block):
            inside = slice(start, start + size)
            student, teacher = batch.position_ids_bt[0, inside], batch.contiguous_bt[0, inside]
            assert teacher.tolist() == list(range(size))
            assert student[0] == 0
            assert bool((student.diff() > 0).all())
            assert student[-1] < 48
            skipped = skipped or not torch.equal(student, teacher)
            start += size
    assert skipped


def test_a_sum_of_objectives_keeps_documents_apart() -> None:
    parts = tuple((name, OBJECTIVES[name], 0.5) for name in ("relation", "longred"))
    made = module("mistral", WeightedSum(parts))
    blocks = Blocks(documents(), LENGTH, seed=1, stream="it", packing=True)
    batches = stage_batches(blocks, tokens=LENGTH * len(blocks))
    found = step_loss(made, batches, ranks=1, micro_batch=3)
    same(found, alone(made, batches, "sum"), made[0], "sum")


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "whole"])
def test_only_tokens_that_are_to_be_learnt_count(
    ranks: int, micro_batch: int, packing: bool
) -> None:
    """The loss is their mean over the step, however unevenly blocks have them."""
    texts = documents()
    draw = np.random.default_rng(1)
    learnt = [
        draw.random(len(tokens)) < share
        for (_, tokens), share in zip(texts, np.linspace(0, 1, len(texts)), strict=True)
    ]
    blocks = Blocks(texts, LENGTH, seed=1, stream="it", packing=packing, learnt=learnt)
    made = module("llama", OBJECTIVES["language"])
    batches = stage_batches(blocks, tokens=LENGTH * len(blocks))
    found = step_loss(made, batches, ranks=ranks, micro_batch=micro_batch)
    total, counted = torch.zeros((), dtype=torch.float64), 0
    for piece in batches.schedule.pieces(0):
        block, marks = blocks[piece.block], blocks.learnt(piece.block)
        assert marks is not None
        start = 0
        for size in blocks.segments(piece.block):
            inside = slice(start, start + size)
            start += size
            following = next_tokens(block[None, inside], None, marks[None, inside])
            ids_bt, next_bt = (torch.from_numpy(x) for x in (block[None, inside], following))
            if size > 1:
                counted += int((following != NOTHING).sum())
                one = Batch(ids_bt, next_ids_bt=next_bt, predicted=torch.ones(()))
                total = total + made[0](one, "it", None)[0]
    same(found, total / counted, made[0], "language")
