"""A student that starts from another checkpoint than its teacher: a model that is extended already.

`student.weights=DIR` or `student.weights=ORG/NAME` is someone's long model, which is restored from
its original. Both must have the same sizes and the same tokenizer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.models.config import FolderWeights, HubWeights
from src.models.families import family_of_type
from src.models.sources import local_folder, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What the RoPE and the norms of a student may differ in; all other sizes are its teacher's.
_MAY_DIFFER = ("rope_theta", "rope_scaling", "original_window", "norm_eps")


@dataclass(frozen=True)
class StudentConfig:
    """The student's start.

    Attributes:
        weights: a folder or a repository on the hub; null for the teacher's own weights.
    """

    weights: str | None = None

    @property
    def source(self) -> FolderWeights | HubWeights | None:
        """Where the weights are; a folder of that name wins."""
        if self.weights is None:
            return None
        folder = Path(self.weights).expanduser()
        if folder.exists() or self.weights.count("/") != 1 or self.weights.startswith((".", "~")):
            return FolderWeights("folder", self.weights)
        return HubWeights("hub", self.weights)

    @property
    def folder(self) -> Path | None:
        """The folder of the weights; those on the hub are downloaded."""
        return None if self.source is None else local_folder(self.source)


def own_rope(weights: str) -> dict[str, Any]:
    """Settings of `rope=own`: the RoPE and the window that a student's checkpoint states.

    Raises:
        ModelError: its config cannot be read, or its RoPE is of another type than is known.
    """
    from src.models.own import judged_window

    config = read_config(StudentConfig(weights).source)
    parameters = dict(config.rope_parameters)
    if family_of_type(config.model_type).rope_by_layer_type:
        parameters = dict(parameters["full_attention"])
    return {"parameters": parameters, "target_length": judged_window(config)[0]}


def differences(teacher: PretrainedConfig, student: PretrainedConfig) -> list[str]:
    """What differs between a teacher and a student besides their RoPE, for people."""
    from src.models.shapes import attention_windows, shape_of

    if teacher.model_type != student.model_type:
        return [f"type ({student.model_type}, the teacher {teacher.model_type})"]
    mine, theirs = asdict(shape_of(student)), asdict(shape_of(teacher))
    differing = [
        f"{key} ({mine[key]}, the teacher {theirs[key]})"
        for key in mine
        if key not in _MAY_DIFFER and mine[key] != theirs[key]
    ]
    if attention_windows(teacher) != attention_windows(student):
        differing.append("sliding windows")
    return differing
