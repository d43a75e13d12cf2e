"""The contract between `api` and the implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Visibility:
    """What a row may see: A(i) = {j: j <= i if causal, same segment, key real, i - j < window}."""

    causal: bool
    window: int | None
    segment_ids: Tensor | None
    key_mask: Tensor | None


@dataclass(frozen=True)
class Scales:
    """Factors of the two sides' raw products; the temperature is already divided out."""

    student: float
    teacher: float


class Inputs(NamedTuple):
    """The inputs of a Triton operator: relations, or one attention.

    The two students of an attention are its queries and keys, and so are the teachers.
    """

    students: Sequence[Tensor]
    teachers: Sequence[Tensor]
    segment_ids: Tensor | None
    key_mask: Tensor | None
    student_scales: Sequence[float]
    teacher_scales: Sequence[float]
    causal: bool
    window: int | None
    allow_tf32: bool


class Implementation(Protocol):
    """The functions that a backend's module provides.

    Both functions return ``KL(teacher || student)`` by row, ``[batch, heads, tokens]`` (float64
    where an input is float64, else float32), differentiable with respect to the student's tensors.
    Padding rows may hold any value, and get upstream gradient 0. Arguments have been validated;
    teachers are detached.
    """

    def relation_rows(
        self,
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        scales: Sequence[Scales],
        visibility: Visibility,
        *,
        allow_tf32: bool,
    ) -> list[Tensor]:
        """Rows of each self-relation; head counts and head sizes may differ between relations."""
        ...

    def attention_rows(
        self,
        q_student: Tensor,
        k_student: Tensor,
        q_teacher: Tensor,
        k_teacher: Tensor,
        scales: Scales,
        visibility: Visibility,
        *,
        allow_tf32: bool,
    ) -> Tensor:
        """Rows of attention; keys may have fewer heads than queries (grouped)."""
        ...
