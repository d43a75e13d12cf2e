"""Objectives: (batch, teacher, student) -> loss and metrics, one small file each.

An objective is a frozen dataclass that inherits from `Objective` (`base`). Its fields are its
settings, `needs` says what must be collected from the models, and `loss` computes. A new file in
this folder that defines `OBJECTIVE` is found here and accepted in configs under its `type`; nothing
else has to know about it. Objectives see tensors and plain facts only. `chunks` goes through long
blocks chunk by chunk; `weighted_sum` puts several objectives on one stream.
"""

from __future__ import annotations

from src import discovery
from src.objectives.base import Objective


def _problem(part: object) -> str | None:
    return discovery.class_problem(part, Objective, ("needs", "loss"), named_by_type=True)


# The class of every objective, in the order of file names.
OBJECTIVES: tuple[type[Objective], ...] = tuple(
    discovery.parts(
        __name__,
        __path__,
        "OBJECTIVE",
        _problem,
        key=discovery.type_of,
        besides=("base", "chunks", "weighted_sum"),
    ).values()
)
