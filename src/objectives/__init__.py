"""Objectives: (batch, teacher, student) -> loss and metrics, one small file each.

An objective is a frozen dataclass: its fields are its settings, `needs` says what must be collected
from the models, and `loss` computes. A new file in this folder that defines `OBJECTIVE` is found
here and accepted in configs under its `type`; nothing else has to know about it. Objectives see
tensors and plain facts only. What they share is in `base` (their protocol), `chunks` (long blocks
piece by piece) and `weighted_sum` (several on one stream).
"""

from __future__ import annotations

import importlib
import pkgutil

_SHARED = ("base", "chunks", "weighted_sum")
_MODULES = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)

# Every objective's class, in the order of their files' names.
OBJECTIVES: tuple[type, ...] = tuple(
    importlib.import_module(f"{__name__}.{name}").OBJECTIVE for name in _MODULES
)
