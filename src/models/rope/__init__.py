"""RoPE scalings: each one dataclass with its fields, its mathematics and its export.

A scaling is chosen by `rope.type`; `rope.target_length` says how long the extended window shall be
and what depends on it (a factor, mostly) follows from the model's native window. A new file in this
folder that defines `SCALING` is found here and accepted in configs under its `type`.
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

_MODULES = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")

# Every scaling's class, in the order of their files' names.
SCALINGS: tuple[type[Scaling], ...] = tuple(
    importlib.import_module(f"{__name__}.{name}").SCALING for name in _MODULES
)

# The set is found at run time, so type checkers see the class that all scalings share.
if TYPE_CHECKING:
    RopeScaling = Scaling
else:
    RopeScaling = Annotated[functools.reduce(operator.or_, SCALINGS), Field(discriminator="type")]

__all__ = [
    "SCALINGS",
    "BaseFrequencyScaling",
    "LinearScaling",
    "NativeRope",
    "RopeScaling",
    "Scaling",
]
