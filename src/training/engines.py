"""The engines of a stage, teacher and student, and what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.models.facts import ModelFacts
from src.objectives.base import Objective

if TYPE_CHECKING:
    from src.training.engine.student import Student
    from src.training.engine.teacher import Teacher


@dataclass(frozen=True)
class Engines:
    """Both engines, with the stage's objectives by stream.

    Attributes:
        teacher: None if no objective has a teacher, or if it shares the student's weights.
    """

    objectives: Mapping[str, Objective]
    facts: ModelFacts
    student: Student
    teacher: Teacher | None = None

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
