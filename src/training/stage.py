"""A stage's models, engines and loop, made from the run's config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from src.data.corpus import TrainingBlocks
from src.models.adapters import make_trainable
from src.models.hf_config import native_config, scaled_config
from src.models.loading import load_model
from src.models.shapes import facts_of
from src.objectives.base import Objective
from src.passes.calibration import attention_drift
from src.planning.devices import device_of, dtype_of
from src.planning.plan import StagePlan
from src.settings.config import RunConfig
from src.training.batches import Batches
from src.training.engine.student import Student
from src.training.engine.teacher import Teacher
from src.training.engine.zero import sharding
from src.training.engines import Engines
from src.training.launch import World, agreed
from src.training.loop import StageRun
from src.training.schedule import StageSchedule
from src.training.sequence import Place
from src.training.watch import Watch


def build_engines(
    config: RunConfig,
    name: str,
    planned: StagePlan,
    objectives: Mapping[str, Objective],
    *,
    weights: Path | None = None,
    random_on: torch.device | None = None,
) -> Engines:
    """Load the teacher and the student of a stage, and make their engines; every rank calls it.

    Under ZeRO-3 no rank ever holds a whole model (see src/models/assembly.py).

    Args:
        weights: the folder that the stage begins with; None for the model's source.
        random_on: the device on which random weights are drawn, the CPU by default.
    """
    stage = config.recipe.training[name]
    native = native_config(config.model)
    facts = facts_of(native)
    load = partial(
        load_model,
        config.model,
        dtype=dtype_of(config.engine.dtype),
        capture=True,
        random_on=random_on,
    )
    has_teacher = any(o.needs(facts).teacher for o in objectives.values())
    shared = has_teacher and config.engine.teacher.share_base
    teacher = None
    if has_teacher and not shared:
        network = load(native, sharding=sharding(config.engine, "teacher"))
        teacher = Teacher(network, objectives, facts, config.engine, planned)
    sharded = sharding(config.engine, "student")
    scaled = scaled_config(config.model, config.rope)
    base = load(scaled, weights=weights, sharding=sharded)
    student = Student(
        make_trainable(base, stage.parameters, seed=config.seed, sharding=sharded),
        objectives,
        facts,
        config,
        planned,
        native=native if shared else None,
    )
    return Engines(objectives, facts, student, teacher)


def stage_run(
    config: RunConfig,
    planned: StagePlan,
    engines: Engines,
    blocks: Mapping[str, TrainingBlocks],
    world: World,
    watch: Watch | None = None,
) -> StageRun:
    """The loop of a stage."""
    batches = Batches(
        planned.name,
        StageSchedule(config.recipe.training[planned.name]),
        blocks,
        Place.of(world.rank, world.size, config.engine.sequence_parallel),
        device_of(config.engine.device),
        seed=config.seed,
        window=config.rope.target_length,
    )
    skipped = config.optim.max_skipped
    return StageRun(batches, engines, world, planned.micro_batch, skipped, watch or Watch())


# How many tokens the drift of attention is measured on.
_CALIBRATION_TOKENS = 4096


def measured_drift(config: RunConfig, blocks: TrainingBlocks, weights: Path | None) -> list[float]:
    """KL of each layer's attention rows between native and scaled model, the same on every rank.

    Args:
        blocks: of the stream whose objective asks for it. The first 4096 tokens are read, or the
            first block, up to the native window, if it is longer.
        weights: the folder that the stage begins with; None for the model's source.
    """
    count = max(1, _CALIBRATION_TOKENS // blocks.length)
    read = slice(config.model.native_window)
    ids_bt = torch.from_numpy(np.stack([blocks[i][read] for i in range(count)]))
    native = native_config(config.model)
    dtype = dtype_of(config.engine.dtype)
    load = partial(load_model, config.model, dtype=dtype, capture=True)
    drift = attention_drift(
        load(native),
        load(scaled_config(config.model, config.rope), weights=weights),
        ids_bt,
        facts_of(native),
        device_of(config.engine.device),
    )
    # GPUs may differ in the last bits.
    return agreed(drift)
