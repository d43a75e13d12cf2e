"""What ranks of test_sequence.py run: the same training, and the same float64 passes, on any ranks.

Rank 0 leaves results in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed

from src.data.blocks import Blocks as PackedBlocks
from src.models.adapters import FullParameters, causal_model
from src.models.shapes import facts_of
from src.objectives.base import Batch, Objective
from src.objectives.language_modeling import LanguageModeling
from src.objectives.logit_distillation import LogitDistillation
from src.objectives.longred import LongRed
from src.objectives.relation import Relation, RelationWeights
from src.passes.preparation import prepare_decoder
from src.passes.student import StudentModule
from src.passes.teacher import TeacherModule
from src.planning import plan
from src.settings.config import RunConfig
from src.training import launch, stage
from src.training.batches import Batches
from src.training.engine.ulysses import spread_attention
from src.training.engine.zero import load_deepspeed
from src.training.launch import World
from src.training.loop import StepRecord
from src.training.schedule import StageConfig, StageSchedule, StreamConfig
from src.training.sequence import Place, next_tokens
from tests.src.passes import test_passes as networks

TOKENS = 24
ALL_WEIGHTS = RelationWeights(1.0, 0.5, 2.0, 0.7)
OBJECTIVES: dict[str, Objective] = {
    "relation": Relation("relation", ALL_WEIGHTS),
    "reference": Relation("relation", ALL_WEIGHTS, normalization="reference"),
    "longred": LongRed("longred", (1, 3)),
    "longred-last": LongRed("longred", "last"),
    "logits": LogitDistillation("logit_distillation", chunk=5),
    "language": LanguageModeling("language_modeling", chunk=5),
}

HEADS = networks.Heads()


@dataclass(frozen=True)
class PassCase:
    """A float64 pass of both models."""

    family: str = "llama"
    objective: str = "relation"
    lora: bool = True
    checkpointing: bool = False
    keep: Literal["qkv", "layer_inputs"] = "qkv"
    skipping: bool = False
    packed: bool = False
    heads: networks.Heads = HEADS


def work(
    world: World,
    folder: Path,
    runs: Mapping[str, RunConfig],
    passes: Sequence[tuple[str, PassCase, int]],
) -> None:
    """Train the runs, and make each pass over blocks that so many ranks share, as one rank."""
    with launch.joined(world, cuda=False):
        for name, settings in runs.items():
            trained(settings, world, folder / name)
        for name, case, parts in passes:
            passed(case, world, parts, folder / f"passes-{parts}-{name}.safetensors")


class Blocks:
    """Random tokens, by number."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __getitem__(self, index: int) -> np.ndarray:
        return np.random.default_rng([self._length, index]).integers(0, 256, self._length)


def trained(settings: RunConfig, world: World, out: Path) -> None:
    """Train the only stage as a run does, and leave its losses and what was trained."""
    ((name, streams),) = ((n, x.streams) for n, x in settings.recipe.stages.items())
    objectives = settings.objectives(name)
    planned = plan.make(settings, world_size=world.size).stage(name)
    engines = stage.build_engines(settings, name, planned, objectives)
    # Random tokens replace a corpus's blocks.
    made = _packed_blocks if out.name.startswith("packed") else Blocks
    blocks: Any = {stream: made(x.length) for stream, x in streams.items()}
    stage_run = stage.stage_run(settings, planned, engines, blocks, world)
    records: list[StepRecord] = []
    stage_run.train(0, records.append)
    weights = engines.student.trained_parameters()
    if world.is_main:
        out.with_suffix(".json").write_text(json.dumps([r.metrics for r in records]))
        save_file(weights, out.with_suffix(".safetensors"))
    engines.close()


def _packed_blocks(length: int) -> PackedBlocks:
    """Documents of a third of a block to five thirds."""
    draw = np.random.default_rng(length)
    sizes = draw.integers(length // 3, length * 5 // 3, 40)
    documents = [(f"d{n}", draw.integers(0, 256, size)) for n, size in enumerate(sizes)]
    return PackedBlocks(documents, length, seed=0, stream="it", packing=True)


def passed(case: PassCase, world: World, parts: int, out: Path) -> None:
    """A float64 pass of both models over blocks that `parts` ranks share: its loss and gradients.

    Each group of ranks makes the same pass. Rank 0 leaves the means over all ranks in
    `out`, the loss under the name `loss`.
    """
    facts = facts_of(networks.config(case.family, factor=None, heads=case.heads))
    objective = OBJECTIVES[case.objective]
    parameters = networks.LORA if case.lora else FullParameters("full")
    student = networks.trained_network(
        case.family, parameters, checkpointing=case.checkpointing, heads=case.heads
    )
    taught = networks.network(case.family, heads=case.heads)
    place = Place.of(world.rank, world.size, parts)
    if parts > 1:
        load_deepspeed(torch.device("cpu"))
        for network in (student, taught):
            spread_attention(network, facts, parts)
    needs = objective.needs(facts)
    for network in (student, taught):
        ends = {needs.stops_at, needs.teacher_stops_at}
        prepare_decoder(causal_model(network).get_decoder(), ends)
    batch = _batch(place, skipping=case.skipping, packed=case.packed)
    head = taught.get_output_embeddings() if needs.teacher_head else None
    teacher = TeacherModule(taught, case.keep, head)
    module = StudentModule(student, {"it": objective}, facts)
    loss, _ = module(batch, "it", teacher)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            found[name] = torch.zeros_like(parameter) if gradient is None else gradient
    if world.size > 1:
        for value in found.values():
            distributed.all_reduce(value)
            value /= world.size
    if world.is_main:
        save_file(found, out)


def _batch(place: Place, *, skipping: bool, packed: bool) -> Batch:
    rows_bt = np.random.default_rng(5).integers(0, 97, (2, TOKENS))
    skipped_t = np.concatenate([np.arange(9), np.arange(40, 50), np.arange(91, 96)])
    positions_bt = np.stack([skipped_t, skipped_t]) if skipping else None

    def part(whole_bt: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(place.cut(whole_bt)))

    if packed:
        return _packed(rows_bt, place)
    positions = None if positions_bt is None else part(positions_bt)
    if place.parts == 1:
        return Batch(part(rows_bt), positions)
    following = part(next_tokens(rows_bt))
    return Batch(part(rows_bt), positions, place.parts, place.first(TOKENS), following)


def _packed(rows_bt: np.ndarray, place: Place) -> Batch:
    """The same rows as blocks of documents whose borders are not those of the parts."""
    sizes = [5, 9, 3, 20, 11]
    ends = np.cumsum(sizes)
    texts = rows_bt.reshape(-1)
    documents = [
        (f"d{n}", texts[end - size : end])
        for n, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    packed = PackedBlocks(documents, TOKENS, seed=0, stream="it", packing=True)
    tokens = 2 * TOKENS
    streams = {"it": StreamConfig("it", TOKENS)}
    schedule = StageSchedule(
        StageConfig(tokens, tokens, 1.0, 0, 1.0, FullParameters("full"), streams)
    )
    batches = Batches(
        "stage", schedule, {"it": packed}, place, torch.device("cpu"), seed=0, window=TOKENS
    )
    (micro,) = schedule.micro_steps(0, rank=0, world_size=1, micro_batch=2)
    return batches.of(micro, 0)
