"""Teacher inheritance: how often a student repeats the native model's mistakes.

The suite takes the items of multiple-choice tasks that the native model gets wrong, and counts how
often another model chooses the same wrong answer. A student that was taught by the native model may
lean on it more than one that was trained on text alone; `compare=[RUN_DIR]` adds the latter. Models
are asked as in the short suite, whose cached results are used.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeInt

from src.evals.halves import named
from src.evals.measuring import measure
from src.evals.restoration import MIN_ITEMS, Answers
from src.evals.suite import Evaluation, EvaluationError, Outcome, ResultTable
from src.evals.suites.short import ShortSuite
from src.evals.tasks import definitions
from src.results import Interval, ModelRecord, Record, SuiteResults


class Repeated(Record):
    """The native model's mistakes that another model repeats."""

    native_wrong: NonNegativeInt  # items that the native model gets wrong; the shares are of these
    wrong: float | None = None
    same: float | None = None  # answered with the same wrong answer
    same_of_wrong: float | None = None  # the same as a share of the model's own mistakes there
    interval: Interval | None = None
    chance: float | None = None  # `same_of_wrong` of guesses among the wrong answers


class InheritanceModel(ModelRecord):
    """Repeated mistakes by task, and over all tasks."""

    tasks: dict[str, Repeated] = Field(default_factory=dict)
    all: Repeated


class InheritanceResults(SuiteResults[InheritanceModel]):
    """`evals/inheritance.json`."""

    suite: ClassVar[str] = "inheritance"


@dataclass(frozen=True)
class InheritanceSuite(ShortSuite):
    """The short suite's settings; tasks must be multiple choice."""

    name: ClassVar[str] = "inheritance"
    needs_run: ClassVar[bool] = True
    record: ClassVar[type[SuiteResults[Any]]] = InheritanceResults

    def __post_init__(self) -> None:
        super().__post_init__()
        tasks = definitions()
        open_ended = [t for t in self.tasks if t in tasks and tasks[t].choices is None]
        if open_ended:
            raise ValueError(
                f"tasks={open_ended}: there are no answers to choose from; leave them out"
            )

    def run(self, evaluation: Evaluation) -> Outcome:
        """Compare every model's wrong answers with the native model's; both must have answers."""
        measured = measure(evaluation, self)
        if not evaluation.is_main:
            return Outcome(None)
        answered = [c for c in evaluation.candidates if c.name in measured.answers]
        natives = [candidate for candidate in answered if candidate.role == "native"]
        both = {task for each in natives for task in measured.answers[each.name]}
        others = [
            candidate
            for candidate in answered
            if candidate not in natives and both & measured.answers[candidate.name].keys()
        ]
        if not natives or not others:
            why = "; ".join(measured.failures.values()) or "give run=RUN_DIR"
            raise EvaluationError(f"there is nothing to compare the native model with: {why}")
        native = measured.answers[natives[0].name]
        models = []
        for candidate in others:
            answered_by = measured.answers[candidate.name]
            tasks = {
                task: self._repeated(task, {task: native[task]}, {task: answers})
                for task, answers in answered_by.items()
                if task in native
            }
            overall = self._repeated("all", native, answered_by)
            models.append(InheritanceModel(**candidate.identity, tasks=tasks, all=overall))
        record = InheritanceResults(
            limit=self.limit,
            split=named(self.split),
            failures=measured.failures,
            models=tuple(models),
        )
        return Outcome(record)

    def _repeated(
        self,
        label: str,
        native: Mapping[str, Answers],
        other: Mapping[str, Answers],
    ) -> Repeated:
        """Figures over the items of some tasks together; no interval for too few items."""
        tasks = [t for t in other if t in native]
        gold, theirs, mine = (
            np.concatenate([np.asarray(getattr(source[t], key)) for t in tasks])
            for source, key in ((native, "gold"), (native, "predicted"), (other, "predicted"))
        )
        wrong_choices = {t: (definitions()[t].choices or 2) - 1 for t in tasks}
        guess = np.concatenate([np.full(len(native[t].score), 1 / wrong_choices[t]) for t in tasks])
        missed = theirs != gold
        count = int(missed.sum())
        if count == 0:
            return Repeated(native_wrong=0)
        same = (mine == theirs)[missed]
        wrong = (mine != gold)[missed]
        draw = np.random.default_rng([self.seed, zlib.crc32(label.encode())])
        resampled = draw.binomial(count, same.mean(), size=self.resamples) / count
        low, high = np.percentile(resampled, (2.5, 97.5))
        return Repeated(
            native_wrong=count,
            wrong=float(wrong.mean()),
            same=float(same.mean()),
            same_of_wrong=float(same.sum() / wrong.sum()) if wrong.any() else None,
            interval=(float(low), float(high)) if count >= MIN_ITEMS else None,
            chance=float(guess[missed].mean()),
        )

    @staticmethod
    def tables(record: Any) -> Sequence[ResultTable]:
        """Shares of the native mistakes repeated: one row per task, one column per model."""
        models = record.models
        rows: list[tuple[Any, ...]] = [
            (task, *_cells([model.tasks.get(task) for model in models])) for task in models[0].tasks
        ]
        rows.append(("all", *_cells([model.all for model in models])))
        shares = [model.all.same_of_wrong for model in models]
        rows.append(("share of its own mistakes there, all", None, *shares))
        mark = "" if record.limit is None else " items of each task"
        return [
            ResultTable(
                name=record.marked("inheritance", "_limit_"),
                title="Mistakes of the native model repeated with the same wrong answer"
                + record.marked("", ", a quick look: at most ")
                + mark,
                columns=("task", "native model wrong", *(model.name for model in models)),
                rows=tuple(rows),
                formats=("", "d", *(".1%" for _ in models)),
                notes=("A model that is always right repeats none; the native model itself, all.",),
            )
        ]

    @staticmethod
    def summary(record: Any) -> dict[str, float]:
        """The share of mistakes repeated, by model."""
        suite, names = record.marked("inheritance", "@limit"), ("same", "same_of_wrong")
        return record.figures(lambda m: {f"{suite}/{name}": getattr(m.all, name) for name in names})


def _cells(repeated: Sequence[Repeated | None]) -> list[Any]:
    first = next((one for one in repeated if one), None)
    return [first and first.native_wrong, *(one and one.same for one in repeated)]


SUITE = InheritanceSuite
