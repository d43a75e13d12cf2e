"""Objectives: (batch, teacher, student) -> loss and metrics, one small file each.

An objective is a frozen dataclass that inherits from `Objective` (`base`). Its fields are its
settings, `needs` says what must be collected from the models, and `loss` computes. A new file in
this folder that defines `OBJECTIVE` is found here and accepted in configs under its `type`; nothing
else has to know about it. Objectives see tensors and plain facts only. `chunks` goes through long
blocks chunk by chunk; `weighted_sum` puts several objectives on one stream.
"""

from __future__ import annotations

import importlib
import pkgutil

from src.objectives.base import Objective

_SHARED = ("base", "chunks", "weighted_sum")
_MODULES = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)

# The class of every objective, in the order of file names.
OBJECTIVES: tuple[type[Objective], ...] = tuple(
    importlib.import_module(f"{__name__}.{name}").OBJECTIVE for name in _MODULES
)
