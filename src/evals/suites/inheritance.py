"""Teacher inheritance: how often a student repeats the native model's mistakes.

On the items of multiple-choice tasks that the native model gets wrong: how often another model
chooses the same wrong answer. A student that was taught by the native model may lean on it more
than one that was trained on text alone; `compare=[RUN_DIR]` puts the latter beside it. The models
are asked as in the short suite, whose results are used where they are known.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from src.evals import measuring
from src.evals.restoration import MIN_ITEMS
from src.evals.suite import Evaluation, EvaluationError, ResultTable, SuiteResult
from src.evals.suites.short import ShortSuite, roles_of
from src.evals.tasks import definitions
from src.run_folder import SCHEMA


@dataclass(frozen=True)
class InheritanceSuite(ShortSuite):
    """The short suite's settings; tasks must be multiple choice."""

    name: ClassVar[str] = "inheritance"
    needs_run: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known = definitions()
        open_ended = [t for t in self.tasks if t in known and known[t].choices is None]
        if open_ended:
            raise ValueError(
                f"tasks={open_ended}: there are no answers to choose from; leave them out"
            )

    def run(self, evaluation: Evaluation) -> SuiteResult:
        """Compare every model's wrong answers with the native model's.

        Raises:
            EvaluationError: the native model has no answers, or nothing is beside it.
        """
        measured = measuring.measure(evaluation, self.questions)
        if not evaluation.is_main:
            return SuiteResult({})
        roles = roles_of(evaluation, measured.answers)
        others = [name for name in measured.answers if name != roles.native]
        if roles.native is None or not others:
            why = "; ".join(measured.failures.values()) or "give run=RUN_DIR"
            raise EvaluationError(f"there is nothing to compare the native model with: {why}")
        native = measured.answers[roles.native]
        content = {
            "schema": SCHEMA,
            "suite": self.name,
            "limit": self.limit,
            "models": [
                {
                    "name": name,
                    "tasks": {
                        task: self._repeated(task, {task: native[task]}, {task: given[task]})
                        for task in given
                        if task in native
                    },
                    "all": self._repeated("all", native, given),
                }
                for name in others
                for given in [measured.answers[name]]
            ],
        }
        return SuiteResult(content, failures=measured.failures)

    def _repeated(
        self,
        label: str,
        native: Mapping[str, Mapping[str, Any]],
        given: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Figures over some tasks' items together.

        Returns:
            `native_wrong`: items that the native model gets wrong; of those, the shares that this
            model gets wrong (`wrong`) and answers with the same wrong answer (`same`), the latter's
            95% bootstrap `interval` (None of too few items), and `same_of_wrong`, the share of its
            own mistakes there that are the native model's. `chance`: `same_of_wrong` of guesses
            among the wrong answers.
        """
        tasks = [t for t in given if t in native]
        gold, theirs, mine = (
            np.concatenate([np.asarray(source[t][key]) for t in tasks])
            for source, key in ((native, "gold"), (native, "predicted"), (given, "predicted"))
        )
        known = definitions()
        guess = np.concatenate(
            [np.full(len(native[t]["gold"]), 1 / ((known[t].choices or 2) - 1)) for t in tasks]
        )
        missed = theirs != gold
        count = int(missed.sum())
        if count == 0:
            return {
                "native_wrong": 0,
                "wrong": None,
                "same": None,
                "same_of_wrong": None,
                "interval": None,
                "chance": None,
            }
        same = (mine == theirs)[missed]
        wrong = (mine != gold)[missed]
        draw = np.random.default_rng([self.seed, zlib.crc32(label.encode())])
        resampled = draw.binomial(count, same.mean(), size=self.resamples) / count
        return {
            "native_wrong": count,
            "wrong": float(wrong.mean()),
            "same": float(same.mean()),
            "same_of_wrong": float(same.sum() / wrong.sum()) if wrong.any() else None,
            "interval": (
                [float(x) for x in np.percentile(resampled, (2.5, 97.5))]
                if count >= MIN_ITEMS
                else None
            ),
            "chance": float(guess[missed].mean()),
        }

    @staticmethod
    def tables(content: Mapping[str, Any]) -> Sequence[ResultTable]:
        """A task a row, a model a column: the share of the native model's mistakes repeated."""
        limit = content["limit"]
        mark = "" if limit is None else f", a quick look: at most {limit} items of each task"
        models = content["models"]
        rows: list[tuple[Any, ...]] = [
            (task, *_cells([m["tasks"].get(task) for m in models])) for task in models[0]["tasks"]
        ]
        rows.append(("all", *_cells([m["all"] for m in models])))
        shares = [m["all"]["same_of_wrong"] for m in models]
        rows.append(("share of its own mistakes there, all", None, *shares))
        return [
            ResultTable(
                name="inheritance" if limit is None else f"inheritance_limit_{limit}",
                title=f"Mistakes of the native model repeated with the same wrong answer{mark}",
                columns=("task", "native model wrong", *(m["name"] for m in models)),
                rows=tuple(rows),
                formats=("", "d", *(".1%" for _ in models)),
                notes=("A model that is always right repeats none; the native model itself, all.",),
            )
        ]

    @staticmethod
    def summary(content: Mapping[str, Any]) -> dict[str, float]:
        """The share of mistakes repeated, by model."""
        limit = content["limit"]
        suite = "inheritance" if limit is None else f"inheritance@limit{limit}"
        return {
            f"eval/{m['name']}/{suite}/{key}": m["all"][key]
            for m in content["models"]
            for key in ("same", "same_of_wrong")
            if m["all"][key] is not None
        }


def _cells(given: Sequence[Mapping[str, Any] | None]) -> list[Any]:
    first = next((g for g in given if g is not None), None)
    return [first and first["native_wrong"], *(g and g["same"] for g in given)]


SUITE = InheritanceSuite
