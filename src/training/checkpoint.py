"""Save and resume training.

A checkpoint holds the trained weights, the optimizer's state and the position of the run. Data and
random numbers are functions of the step, so they need no saving. A checkpoint is written under
another name and renamed when it is whole, so a folder named step-N is complete.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import distributed

from src.run_folder import RunFolder, whole_checkpoints, write_json

if TYPE_CHECKING:
    from src.training.engines import StudentEngine


class CheckpointError(ValueError):
    """A checkpoint from which no run can resume."""


@dataclass(frozen=True)
class Position:
    """Steps finished in the run and in its current stage, and the number of ranks."""

    step: int
    stage: str
    stage_step: int
    world_size: int


def save(folder: RunFolder, student: StudentEngine, position: Position, *, keep: int) -> None:
    """Write a checkpoint and drop the oldest beyond `keep`; all ranks call it."""
    target = folder.checkpoints / f"step-{position.step}"
    partial = target.with_name(f"{target.name}.partial")
    main = distributed.get_rank() == 0
    if main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    student.save(partial)
    distributed.barrier()
    if main:
        write_json(partial / "position.json", asdict(position))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in whole_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    distributed.barrier()


def newest(folder: RunFolder) -> tuple[Path, Position] | None:
    """The newest complete checkpoint, or None.

    Raises:
        CheckpointError: its position cannot be read.
    """
    checkpoints = whole_checkpoints(folder)
    if not checkpoints:
        return None
    last = checkpoints[-1]
    file = last / "position.json"
    try:
        return last, Position(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; remove {last}") from error
