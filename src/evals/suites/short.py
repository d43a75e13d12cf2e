"""The short suite: what a model can do on short text, before and after its window is extended.

Tasks are lm-eval's, in the groups of the LongReD paper. `src.evals.restoration` compares models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from src.evals.halves import named
from src.evals.measuring import Measured, measure
from src.evals.preparing import Questions, prepare, too_long
from src.evals.restoration import MIN_ITEMS, Restoration, TaskFacts
from src.evals.sandbox import SandboxError
from src.evals.suite import Evaluation, EvaluationError, Outcome, ResultTable
from src.evals.tasks import LONG_TASKS, definition, definitions
from src.results import Interval, Mean, Score, ShortResults, SuiteResults, TaskModel, TaskResult

UNKNOWN_ERROR = f"?: unknown, of fewer than {MIN_ITEMS} items."


@dataclass(frozen=True)
class ShortSuite(Questions):
    """Settings of the short suite."""

    resamples: Annotated[int, Field(ge=100)] = 2000  # of the bootstrap
    seed: Annotated[int, Field(ge=0)] = 0  # of the bootstrap

    name: ClassVar[str] = "short"
    needs_run: ClassVar[bool] = False
    record: ClassVar[type[SuiteResults[Any]]] = ShortResults
    results: ClassVar[type[ShortResults]] = ShortResults

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Documents that cannot be fetched, code without a sandbox, long answers."""
        try:
            prepared, failures = prepare(self)
        except (SandboxError, EvaluationError) as error:
            return [f"eval.{self.name}.{error}"]
        failures |= too_long(prepared, evaluation)
        return [f"eval.{self.name}.tasks: {message}" for message in failures.values()]

    def run(self, evaluation: Evaluation) -> Outcome:
        """Evaluate all models on all tasks and compare them."""
        measured = measure(evaluation, self)
        if not evaluation.is_main:
            return Outcome(None)
        if not measured.answers:
            lines = [f"{what}: {why}" for what, why in measured.failures.items()]
            raise EvaluationError("\n".join(lines))
        record = self.results(
            limit=self.limit,
            split=named(self.split),
            failures=measured.failures,
            models=self._models(evaluation, measured),
            source=self.source,
            dtype=evaluation.dtype,
            device=evaluation.device,
            resamples=self.resamples,
            seed=self.seed,
            **self._about(evaluation),
        )
        # A line for each model and task, with a list entry for each item.
        items = [
            {"model": model, "task": task} | asdict(answers)
            for model, tasks in measured.answers.items()
            for task, answers in tasks.items()
        ]
        return Outcome(record, items)

    def _about(self, evaluation: Evaluation) -> dict[str, Any]:
        """What else the results say of how they were made."""
        writes = any(definition(name).generates for name in self.tasks)
        return {"fused_kernels": evaluation.fused} if writes else {}

    def _models(self, evaluation: Evaluation, measured: Measured) -> tuple[TaskModel, ...]:
        facts = [
            TaskFacts(name, task.category, task.score, task.higher_is_better, task.chance)
            for name, task in (definitions() | LONG_TASKS).items()
            if name in self.tasks
        ]
        candidates = {c.name: c for c in evaluation.candidates if c.name in measured.answers}
        restoration = Restoration(
            facts,
            measured.answers,
            {name: candidate.role for name, candidate in candidates.items()},
            resamples=self.resamples,
            seed=self.seed,
        )
        return tuple(
            restoration.model(
                name,
                weights=candidate.fingerprint,
                seconds=measured.seconds.get(name, {}),
                lm_eval=measured.results[name],
            )
            for name, candidate in candidates.items()
        )

    @staticmethod
    def tables(record: ShortResults) -> Sequence[ResultTable]:
        """Values with standard errors, then each student's scores with intervals."""
        return [_values(record), *(_scores(record, model) for model in record.students)]

    @staticmethod
    def summary(record: ShortResults) -> dict[str, float]:
        """Values, category averages and scores; names of limited figures say so."""
        figures: dict[str, float] = {}
        for model in record.models:
            start = f"eval/{model.name}/{record.marked(record.suite, '@limit')}"
            figures |= {f"{start}/{task}": r.value for task, r in model.results.items()}
            figures |= {f"{start}/category/{c}": m.value for c, m in model.categories.items()}
            for key in ("average", "full_average"):
                if mean := getattr(model, key):
                    figures[f"{start}/{key}"] = mean.value
        for model in record.students:
            start = f"eval/{model.name}/{record.marked(record.suite, '@limit')}"
            for key in ("average", "full_average"):
                for name in ("recovery", "recovery_vs_best", "gap_closed"):
                    score = getattr(model.scores, key)
                    if score and (value := getattr(score, name)) is not None:
                        figures[f"{start}/{key}/{name}"] = value
        return figures


def _values(record: ShortResults) -> ResultTable:
    models = record.models
    rows: list[tuple[Any, ...]] = []
    for task in dict.fromkeys(task for model in models for task in model.results):
        results = [model.results.get(task) for model in models]
        first = next(result for result in results if result)
        direction = "" if first.higher_is_better else ", lower is better"
        label = f"{task} ({first.metric}{direction})"
        rows.append((label, first.n, *(_value(result) for result in results)))
    for category in models[0].categories:
        rows.append((category, None, *(_value(model.categories[category]) for model in models)))
    rows.append(("average, discriminating", None, *(_value(model.average) for model in models)))
    rows.append(("average, all", None, *(_value(model.full_average) for model in models)))
    return ResultTable(
        name=record.marked(record.suite, "_limit_"),
        title=record.marked(record.title, ", a quick look: items of each task, at most ")
        + " (value ± standard error)",
        columns=("task", "items", *(model.name for model in models)),
        rows=tuple(rows),
        formats=("", "d", *("" for _ in models)),
        notes=(UNKNOWN_ERROR,),
    )


def _value(figure: TaskResult | Mean | None) -> str | None:
    if figure is None:
        return None
    scale, digits = (100, 1) if figure.higher_is_better else (1, 3)
    error = "?" if figure.stderr is None else f"{scale * figure.stderr:.{digits}f}"
    return f"{scale * figure.value:.{digits}f} ± {error}"


def _scores(record: ShortResults, model: TaskModel) -> ResultTable:
    scores = model.scores
    entries: dict[str, Score | None] = {**scores.tasks, **scores.categories}
    entries |= {"average, discriminating": scores.average, "average, all": scores.full_average}
    columns = ("task", "recovery", "of the best other run", "gap closed", "differs from scaled", "")
    rows: list[tuple[str | None, ...]] = []
    for name, score in entries.items():
        if score:
            of = score.interval
            recovery = _with_interval(score.recovery, of.recovery, "{:.1f}%", 1)
            vs_best = _with_interval(score.recovery_vs_best, of.recovery_vs_best, "{:.1f}%", 1)
            gap = _with_interval(score.gap_closed, of.gap_closed, "{:.0f}%", 100)
            rows.append((name, recovery, vs_best, gap, *_certainty(score)))
    return ResultTable(
        name=record.marked(f"{record.suite}_scores/{model.name}", "_limit_"),
        title=record.marked(f"{record.title}, {model.name}", ", a quick look: items a task ")
        + " [95% interval]",
        columns=columns,
        rows=tuple(rows),
        formats=("",) * len(columns),
        notes=("A gap is given where scaling has cost the model more than noise.", UNKNOWN_ERROR),
    )


def _certainty(score: Score) -> tuple[str, str]:
    """Whether a score differs from the scaled model's, and whether the task discriminates."""
    if score.difference is None or score.difference.to_scaled.interval is None:
        return "unknown", "too few items"
    return (
        "yes" if score.significant else "within noise",
        "" if score.discriminating else "native at chance",
    )


def _with_interval(
    value: float | None, interval: Interval | None, form: str, scale: float
) -> str | None:
    if value is None:
        return None
    if interval is None:
        return f"{form.format(scale * value)} [?]"
    low, high = (None if end is None else form.format(scale * end) for end in interval)
    return f"{form.format(scale * value)} [{low}, {high}]"


SUITE = ShortSuite
