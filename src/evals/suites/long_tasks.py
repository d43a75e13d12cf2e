"""LongBench v2 and BABILong by lm-eval's own tasks, over the hub's data.

Models are asked and compared as in the short suite. A text that is longer than a model's window
loses its middle, and `lm_eval.TASK.texts_cut` of the results counts such texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from src.evals.suites.short import ShortSuite
from src.evals.tasks import LONG_TASKS
from src.results import LongTasksResults, ShortResults, SuiteResults


@dataclass(frozen=True)
class LongTasksSuite(ShortSuite):
    """The short suite's settings; tasks are those of `src.evals.tasks.LONG_TASKS`."""

    tasks: tuple[str, ...] = tuple(LONG_TASKS)
    source: Literal["package", "hub", "folder"] = "hub"
    cut_middle: bool = True

    name: ClassVar[str] = "long_tasks"
    record: ClassVar[type[SuiteResults[Any]]] = LongTasksResults
    results: ClassVar[type[ShortResults]] = LongTasksResults


SUITE = LongTasksSuite
