"""Save and resume training; export a model that transformers loads.

A checkpoint holds what is trained and the optimizer's state, and where the run stands. Data and
random numbers are functions of the step, so nothing of them needs saving. It is written beside its
final name and renamed when whole: a folder named step-N is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from src.models.adapters import AnyParameters, load_trained, make_trainable, merged
from src.models.hf_config import scaled_config, served_length
from src.models.loading import load_model, load_tokenizer
from src.run_folder import RunFolder, whole_checkpoints, write_json

if TYPE_CHECKING:
    from src.models.config import ModelConfig
    from src.models.rope import RopeScaling
    from src.training.engines import StudentEngine


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps done over all stages and in the current one, and its ranks."""

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
    """The newest whole checkpoint, or None.

    Raises:
        CheckpointError: its position cannot be read.
    """
    found = whole_checkpoints(folder)
    if not found:
        return None
    file = found[-1] / "position.json"
    try:
        return found[-1], Position(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; remove {found[-1]}") from error


def export(
    target: Path,
    trained: Mapping[str, Tensor],
    *,
    model: ModelConfig,
    scaling: RopeScaling,
    parameters: AnyParameters,
    weights: Path | None,
    dtype: torch.dtype,
    seed: int,
    card: str,
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads; rank 0 only.

    The model is built again in float32 from the weights that the stage began with, takes the
    trained parameters, has its adapters merged there and is stored in `dtype`: so merging rounds
    once.

    Args:
        target: the folder to write.
        trained: whole trained parameters by name, from `Student.trained_parameters`.
        model: what was trained.
        scaling: its RoPE scaling, written into the exported config.
        parameters: what was trained of it.
        weights: the folder the stage began with, None for the model's source.
        dtype: of the stored weights.
        seed: the run's seed.
        card: text of the model card.
    """
    config = scaled_config(model, scaling)
    network = load_model(model, config, dtype=torch.float32, weights=weights)
    trainable = make_trainable(network, parameters, seed=seed)
    load_trained(trainable, trained)
    whole = merged(trainable).to(dtype)  # type: ignore[arg-type]  # transformers narrows nn.Module.to
    if (length := served_length(model, scaling)) is not None:
        whole.config.max_seq_len = length
    tokenizer = load_tokenizer(model)
    tokenizer.model_max_length = scaling.target_length
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    whole.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
