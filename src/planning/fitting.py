"""Engines for what `auto` leaves open: how models are sharded, shared and offloaded.

These settings hold for all stages of a run, unlike those of src/planning/decisions.py. None of them
changes what is computed, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from operator import attrgetter
from typing import Any

from src.planning.devices import DeviceFacts
from src.settings.config import RunConfig
from src.settings.engine import EngineConfig

# The most ranks that share a block: as many GPUs as one machine usually joins by fast links.
_MOST_PARTS = 8


# Settings that hold for all stages and may be `auto`, in the order in which they are printed.
OPEN = ("dtype", "student.zero_stage", "student.offload_optimizer", "teacher.zero_stage")
OPEN += ("teacher.share_base", "sequence_parallel")


def is_open(engine: EngineConfig) -> bool:
    """Whether a setting of the engines is `auto`, so that several engines are possible."""
    return any(attrgetter(key)(engine) == "auto" for key in OPEN)


def engines(
    config: RunConfig, world_size: int, device: DeviceFacts
) -> Iterator[list[EngineConfig]]:
    """Engines with everything settled that is `auto`, in groups, the preferred group first.

    Whole weights are preferred to sharded ones, and those to an optimizer on the host. The engines
    of a group differ in how many ranks share a block, and in whether the teacher shares the
    student's weights. Combinations that contradict each other are left out.
    """
    engine, several = config.engine, world_size > 1
    if engine.dtype == "auto":
        engine = replace(engine, dtype="float32" if device.is_cpu else "bfloat16")
    near = config.launch.nproc if config.launch.nproc > 1 else _MOST_PARTS
    parts = [n for n in (1, 2, 4, _MOST_PARTS) if world_size % n == 0 and n <= near]
    stages = [3] if engine.student.offload_parameters else [1, 2, 3] if several else [1]
    teachers = [3] if engine.teacher.offload_parameters else [0, 3] if several else [0]
    places = (
        _open(engine.student.offload_optimizer, [False] if device.is_cpu else [False, True]),
        _open(engine.student.zero_stage, stages),
        _open(engine.teacher.zero_stage, teachers),
    )
    shares = (
        _open(engine.teacher.share_base, [False, True]),
        _open(engine.sequence_parallel, parts),
    )
    for place in product(*places):
        yield [e for share in product(*shares) if (e := _engine(engine, *place, *share))]


def _engine(
    engine: EngineConfig, offload: bool, stage: Any, teacher_stage: Any, share: bool, parts: int
) -> EngineConfig | None:
    """An engine with these settings; None if they contradict each other."""
    try:
        return replace(
            engine,
            student=replace(engine.student, zero_stage=stage, offload_optimizer=offload),
            teacher=replace(engine.teacher, zero_stage=teacher_stage, share_base=share),
            sequence_parallel=parts,
        )
    except ValueError:
        return None


def _open(value: object, choices: list[Any]) -> list[Any]:
    return choices if value == "auto" else [value]
