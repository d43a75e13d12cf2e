"""RoPE scalings: each is one dataclass with its fields, its mathematics and its export.

`rope.type` selects a scaling, and `rope.target_length` sets the extended window. The factor follows
from the target and the model's native window. A file in this folder that defines `SCALING` is
discovered, and configs accept its `type`.
"""

from __future__ import annotations

import functools
import importlib
import operator
import pkgutil
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from src.models.rope.abf import BaseFrequencyScaling
from src.models.rope.base import NativeRope, Scaling
from src.models.rope.linear import LinearScaling
from src.models.rope.native import NATIVE_TYPES, scaling_of

_MODULES = sorted(
    m.name for m in pkgutil.iter_modules(__path__) if m.name not in ("base", "native")
)

# Every scaling's class, in the order of their files' names.
SCALINGS: tuple[type[Scaling], ...] = tuple(
    importlib.import_module(f"{__name__}.{name}").SCALING for name in _MODULES
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
