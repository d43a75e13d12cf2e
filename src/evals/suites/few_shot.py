"""Tasks of the short suite after worked examples, as published figures often have them.

A model that has learnt to copy may copy an example's answer; without examples that does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from src.evals.suite import Evaluation
from src.evals.suites.short import ShortSuite
from src.results import FewShotResults, ShortResults, SuiteResults


@dataclass(frozen=True)
class FewShotSuite(ShortSuite):
    """The short suite's settings, and how many examples are shown.

    Attributes:
        shots: worked examples before each item: the task's first ones, or, where it has none of
            its own, its last items, which are not asked then.
    """

    source: Literal["package", "folder"] = "package"
    shots: Annotated[int, Field(gt=0)] = 5

    name: ClassVar[str] = "few_shot"
    record: ClassVar[type[SuiteResults[Any]]] = FewShotResults
    results: ClassVar[type[ShortResults]] = FewShotResults

    @property
    def examples(self) -> int:
        """`shots`."""
        return self.shots

    def _about(self, evaluation: Evaluation) -> dict[str, Any]:
        return super()._about(evaluation) | {"shots": self.shots}


SUITE = FewShotSuite
