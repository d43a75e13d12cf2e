"""RoPE scalings: each is one dataclass with its fields, its mathematics and its export.

`rope.type` selects a scaling, and `rope.target_length` sets the extended window. The factor follows
from the target and the model's native window. A file in this folder that defines `SCALING` is
discovered, and configs accept its `type`.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from src import discovery
from src.models.rope.abf import BaseFrequencyScaling
from src.models.rope.base import NativeRope, Scaling
from src.models.rope.linear import LinearScaling
from src.models.rope.native import NATIVE_TYPES, scaling_of


def _problem(part: object) -> str | None:
    methods = ("inverse_frequencies", "rope_parameters")
    return discovery.class_problem(part, Scaling, methods, named_by_type=True)


# Every scaling's class, in the order of their files' names.
SCALINGS: tuple[type[Scaling], ...] = tuple(
    discovery.parts(
        __name__,
        __path__,
        "SCALING",
        _problem,
        key=discovery.type_of,
        besides=("base", "native"),
    ).values()
)

# The set is known at run time only, so type checkers see the class that all scalings share.
if TYPE_CHECKING:
    RopeScaling = Scaling
else:
    RopeScaling = Annotated[functools.reduce(operator.or_, SCALINGS), Field(discriminator="type")]

__all__ = [
    "NATIVE_TYPES",
    "SCALINGS",
    "BaseFrequencyScaling",
    "LinearScaling",
    "NativeRope",
    "RopeScaling",
    "Scaling",
    "scaling_of",
]
