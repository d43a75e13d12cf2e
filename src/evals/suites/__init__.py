"""Evaluation suites, one small file each.

A file in this folder that defines `SUITE`, a class as `src.evals.suite.Suite` describes it, is
discovered. Configs accept it as `eval.NAME`, and `python -m src.evaluate` and the end of a run run
it. Nothing else has to know about it.
"""

from __future__ import annotations

from operator import attrgetter

from src import discovery
from src.evals.suite import Suite

_MEMBERS = ("name", "needs_run", "record", "problems", "run", "tables", "summary")


def _problem(part: object) -> str | None:
    return discovery.class_problem(part, Suite, _MEMBERS)


# Every suite's class by its name, in the order of their files' names.
SUITES: dict[str, type[Suite]] = discovery.parts(
    __name__, __path__, "SUITE", _problem, key=attrgetter("name")
)
