"""RULER's tasks at several lengths, scored by the share of references found.

All models read the same samples, each model at the lengths within its window. With `retrieval` the
native model also reads longer samples through BM25, as "native + BM25".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from src.evals.probed import Asked, task_models
from src.evals.restoration import UNKNOWN_ERROR, TaskFacts, stderr_of_mean
from src.evals.ruler.asking import SampleSuite
from src.evals.ruler.sample import RulerError
from src.evals.ruler.tasks import TASKS, check_names
from src.evals.scoring import Count, Probe, Reader, chosen_lengths
from src.evals.suite import LIMITED, Evaluation, ResultTable
from src.results import Mean, RulerResults, TaskResult


@dataclass(frozen=True)
class RulerSuite(SampleSuite):
    """RULER's tasks."""

    samples: Count | tuple[Count, ...] = 100
    """Of each task at each length, in both halves together; or one number for each of `lengths`."""
    tasks: tuple[str, ...] | None = None
    """Names; a repeated name counts once; null for all thirteen."""
    resamples: Count = 1000  # of the bootstrap for intervals

    name: ClassVar[str] = "ruler"
    record: ClassVar[type[RulerResults]] = RulerResults

    def __post_init__(self) -> None:
        try:
            check_names(self.tasks or ())
        except RulerError as error:
            raise ValueError(f"tasks={list(self.tasks or ())}: {error}") from error
        if isinstance(self.samples, tuple) and len(self.samples) != len(self.lengths or ()):
            raise ValueError(
                f"samples={list(self.samples)}: give one number, or `lengths` beside it and a "
                "number for each of them"
            )

    def probes(
        self, evaluation: Evaluation, readers: Sequence[Reader], failures: dict[str, str]
    ) -> list[Probe]:
        """A probe for each task and length."""
        lengths = chosen_lengths(self.lengths, readers, failures)
        tasks = tuple(dict.fromkeys(self.tasks or TASKS))
        asked = [(task, length) for task in tasks for length in lengths]
        store, numbers = self.store(evaluation), self._numbers(lengths)
        if evaluation.is_main:
            store.prepare(asked, numbers)
        evaluation.agreed(None)  # the others wait for the files
        makers = [
            (f"ruler_{task}_{length}", partial(store.samples, task, length, numbers[length]))
            for task, length in asked
        ]
        return self.probes_of(makers, failures)

    def _numbers(self, lengths: Sequence[int]) -> dict[int, int]:
        """How many samples a task has at each length, in both halves together."""
        if isinstance(self.samples, tuple):
            by_length = dict(zip(self.lengths or (), self.samples, strict=True))
        else:
            by_length = dict.fromkeys(lengths, self.samples)
        return {length: self.number(by_length[length]) for length in lengths}

    def scored(self, asked: Asked) -> RulerResults:
        """Every task's share of references found, and means by length."""
        facts = [
            TaskFacts(
                probe.name,
                f"RULER {probe.length}",
                f"string_match_{probe.items[0].match}",
                chance=0.0,
                details={model: {"length": probe.length} for model in asked.values},
            )
            for probe in asked.probes
        ]
        models = task_models(facts, asked, resamples=self.resamples, seed=self.seed)
        return RulerResults(
            **self.about(asked),
            lengths=tuple(sorted({probe.items[0].length for probe in asked.probes})),
            models=tuple(
                model.model_copy(update={"by_length": _by_length(model.results)})
                for model in models
            ),
            seed=self.seed,
            resamples=self.resamples,
        )

    @staticmethod
    def tables(record: RulerResults) -> Sequence[ResultTable]:
        """Means by length, and for each length a table of its tasks."""
        tables = [_means(record), *(_tasks(record, length) for length in record.lengths)]
        return [table for table in tables if table.rows]

    @staticmethod
    def summary(record: RulerResults) -> dict[str, float]:
        """Every task's value, and the mean by length; names of limited figures say so."""
        figures: dict[str, float] = {}
        for model in record.models:
            start = f"eval/{model.name}/{record.marked('long', '@limit')}"
            figures |= {f"{start}/{task}": r.value for task, r in model.results.items()}
            figures |= {f"{start}/ruler/{n}": m.value for n, m in model.by_length.items()}
        return figures


def _by_length(results: Mapping[str, TaskResult]) -> dict[int, Mean]:
    """The mean over tasks at each length, every task of equal weight."""
    groups: dict[int, dict[str, TaskResult]] = {}
    for task, result in results.items():
        assert result.length is not None
        groups.setdefault(result.length, {})[task] = result
    return {
        length: Mean(
            value=sum(result.value for result in group.values()) / len(group),
            stderr=stderr_of_mean([result.stderr for result in group.values()]),
            tasks=tuple(group),
        )
        for length, group in sorted(groups.items())
    }


def _means(record: RulerResults) -> ResultTable:
    rows = []
    for model in record.models:
        means = [model.by_length.get(length) for length in record.lengths]
        errors = [mean.stderr for mean in means if mean]
        stated = [error for error in errors if error is not None]
        largest = 100 * max(stated) if stated and len(stated) == len(errors) else None
        rows.append((model.name, *(mean and 100 * mean.value for mean in means), largest))
    return ResultTable(
        name=record.marked("ruler", "_limit_"),
        title=f"RULER, mean over tasks by length in tokens (0 to 100{record.marked('', LIMITED)})",
        columns=("model", *map(str, record.lengths), "largest stderr"),
        rows=tuple(rows),
        formats=("", *(".1f" for _ in record.lengths), ".1f"),
        notes=(
            "- where a length is beyond the model's window.",
            UNKNOWN_ERROR,
            *_unequal_means(record),
        ),
    )


def _unequal_means(record: RulerResults) -> list[str]:
    """A line that counts the tasks in each mean, if the means are not over the same tasks."""
    models: dict[tuple[int, frozenset[str]], list[str]] = {}
    for model in record.models:
        for length, mean in model.by_length.items():
            tasks = frozenset(task.removesuffix(f"_{length}") for task in mean.tasks)
            models.setdefault((length, tasks), []).append(model.name)
    if len({tasks for _, tasks in models}) < 2:
        return []
    counts = [
        f"{', '.join(names)} at {length} tokens: {len(tasks)}"
        for (length, tasks), names in models.items()
    ]
    return [f"The means are over different tasks. Tasks of {'; '.join(counts)}."]


def _tasks(record: RulerResults, length: int) -> ResultTable:
    """One row per task, one column per model."""
    models = [model for model in record.models if length in model.by_length]
    rows = []
    for task in models[0].by_length[length].tasks if models else ():
        results = [model.results.get(task) for model in models]
        name = task.removeprefix("ruler_").removesuffix(f"_{length}")
        rows.append((name, *(result and 100 * result.value for result in results)))
    return ResultTable(
        name=record.marked(f"ruler_{length}", "_limit_"),
        title=f"RULER at {length} tokens (0 to 100{record.marked('', LIMITED)})",
        columns=("task", *(model.name for model in models)),
        rows=tuple(rows),
        formats=("", *(".1f" for _ in models)),
    )


SUITE = RulerSuite
