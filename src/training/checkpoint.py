"""Save and resume training; export a model that transformers loads.

A checkpoint holds the trained weights, the optimizer's state and the position of the run. Data and
random numbers are functions of the step, so they need no saving. A checkpoint is written under
another name and renamed when it is whole, so a folder named step-N is complete.
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

    The model is built again in float32 from the weights that the stage began with. It takes the
    trained parameters, its adapters are merged, and it is stored in `dtype`, so that merging rounds
    once.

    Args:
        target: the folder to write.
        trained: unsharded trained parameters by name, from `Student.trained_parameters`.
        model: the model that was trained.
        scaling: its RoPE scaling, written into the exported config.
        parameters: which of its parameters were trained.
        weights: the folder that the stage began with; None for the model's source.
        dtype: of the stored weights.
        seed: the run's seed.
        card: text of the model card.
    """
    config = scaled_config(model, scaling)
    network = load_model(model, config, dtype=torch.float32, weights=weights)
    trainable = make_trainable(network, parameters, seed=seed)
    load_trained(trainable, trained)
    network = merged(trainable).to(dtype)  # type: ignore[arg-type]  # transformers narrows nn.Module.to
    if (length := served_length(model, scaling)) is not None:
        network.config.max_seq_len = length
    tokenizer = load_tokenizer(model)
    tokenizer.model_max_length = scaling.target_length
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    network.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
