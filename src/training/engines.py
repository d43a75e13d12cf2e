"""What training needs of the engines of a stage.

`src/training/engine` has the engines that DeepSpeed runs. Nothing but `src/training/stage.py` knows
them: the loop, the run and its checkpoints work with any classes that have these methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Objective, Outputs
from src.passes.student import Teach
from src.training.tensor_files import Part, SavedState


class TeacherEngine(Protocol):
    """The frozen model; see `src.training.engine.teacher.Teacher`."""

    def outputs(self, batch: Batch, needs: Needs) -> Outputs: ...
    def sha256(self) -> str: ...
    def close(self) -> None: ...


class StudentEngine(Protocol):
    """The model in training; see `src.training.engine.student.Student`."""

    def loss(
        self, batch: Batch, stream: str, teach: Teach | None
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def backward(self, loss: Tensor, *, last: bool) -> None: ...
    def predictions(self, ids_bt: Tensor) -> tuple[Tensor, Tensor]: ...
    def step(self, lr: float) -> Tensor | float: ...
    def trained_parameters(self) -> dict[str, Tensor]: ...
    def frozen_sha256(self) -> str: ...
    def state(self) -> list[Part]: ...
    def load(self, saved: SavedState) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Engines:
    """The engines of a stage and what they are for.

    Attributes:
        teacher: None if no objective has a teacher, or if it shares the student's weights.
    """

    objectives: Mapping[str, Objective]
    facts: ModelFacts
    student: StudentEngine
    teacher: TeacherEngine | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether an objective has a teacher, with weights of its own or the student's."""
        return any(o.needs(self.facts).teacher for o in self.objectives.values())

    def teacher_sha256(self) -> str:
        """Hash of the teacher's weights; a collective call under ZeRO-3."""
        return self.student.frozen_sha256() if self.teacher is None else self.teacher.sha256()

    def close(self) -> None:
        """Free both engines."""
        if self.teacher is not None:
            self.teacher.close()
        self.student.close()
