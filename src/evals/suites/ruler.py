"""RULER's tasks at several lengths, scored by the share of references found.

All models read the same samples, each model at the lengths within its window. With `retrieval` the
native model also reads longer samples through BM25, as "native + BM25".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from src.evals.restoration import (
    UNKNOWN_ERROR,
    Answers,
    Restoration,
    TaskFacts,
    stderr_of_mean,
)
from src.evals.retrieval import RetrievalConfig
from src.evals.ruler import TASKS, RulerError, Sample, check_names
from src.evals.ruler.asking import item_lines, probe
from src.evals.ruler.loading import MATERIAL, MaterialConfig
from src.evals.ruler.store import SampleStore
from src.evals.ruler.tasks import ALL_TASKS
from src.evals.scoring import Count, Reader, Values, ask, chosen_lengths, made, readers_of
from src.evals.suite import LIMITED, Evaluation, Outcome, ResultTable
from src.results import Mean, RulerResults, TaskModel, TaskResult


@dataclass(frozen=True)
class RulerSuite:
    """RULER's tasks.

    Attributes:
        lengths: in tokens, prompt and answer together; null for 4K, 8K, 16K and 32K, up to the
            largest window of a model.
        tasks: names; a repeated name counts once; null for all thirteen.
        samples: of each task at each length.
        material: sources of prose, words and questions.
        retrieval: how the native model reads prompts longer than its window; null: not at all.
        seed: of the samples and of the bootstrap.
        limit: most samples of each task.
        resamples: of the bootstrap for intervals.
        batch_tokens: tokens of a batch of prompts; `auto` fills a GPU's memory.
    """

    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    tasks: tuple[str, ...] | None = None
    samples: Count = 100
    material: MaterialConfig = MATERIAL
    retrieval: RetrievalConfig | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    limit: Count | None = None
    resamples: Count = 1000
    batch_tokens: Literal["auto"] | Count = "auto"

    name: ClassVar[str] = "ruler"
    needs_run: ClassVar[bool] = False
    record: ClassVar[type[RulerResults]] = RulerResults

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Misspelt tasks, lengths beyond every window, material that cannot be read."""
        failures: dict[str, str] = {}
        self._samples(evaluation, readers_of(evaluation, self.retrieval), failures)
        return [f"{what}: {message}" for what, message in failures.items()]

    def run(self, evaluation: Evaluation) -> Outcome:
        """Ask every model every task at every length within its window.

        Raises:
            EvaluationError: nothing can be asked.
        """
        failures: dict[str, str] = {}
        readers = readers_of(evaluation, self.retrieval)
        samples = self._samples(evaluation, readers, failures)
        probes = [probe(name, asked, self.batch_tokens) for name, asked in samples.items()]
        values = ask(evaluation, self.name, readers, probes, failures)
        if not evaluation.is_main:
            return Outcome(None)
        record = RulerResults(
            limit=self.limit,
            failures=failures,
            lengths=tuple(sorted({asked[0].length for asked in samples.values()})),
            models=self._models(readers, samples, values),
            seed=self.seed,
            resamples=self.resamples,
        )
        return Outcome(record, list(item_lines(values, samples)))

    def _samples(
        self, evaluation: Evaluation, readers: Sequence[Reader], failures: dict[str, str]
    ) -> dict[str, list[Sample]]:
        """Samples by the name of task and length; `failures` gets the errors of the others."""
        lengths = chosen_lengths(self.lengths, readers, failures)
        store = SampleStore(evaluation.tokenizer, self.material, self.seed)
        number = min(self.samples, self.limit or self.samples)
        tasks = tuple(dict.fromkeys(self.tasks or TASKS))
        known = [task for task in tasks if task in ALL_TASKS]
        for task in tasks:
            try:
                check_names([task])
            except RulerError as error:
                failures[f"ruler_{task}"] = str(error)
        if evaluation.is_main:
            store.prepare([(task, length) for task in known for length in lengths], number)
        evaluation.agreed(None)  # the others wait for the files
        return made(
            (
                (f"ruler_{task}_{length}", partial(store.samples, task, length, number))
                for task in known
                for length in lengths
            ),
            failures,
        )

    def _models(
        self,
        readers: Sequence[Reader],
        samples: Mapping[str, Sequence[Sample]],
        values: Values,
    ) -> tuple[TaskModel, ...]:
        answered = [reader for reader in readers if reader.name in values]
        restoration = Restoration(
            [
                TaskFacts(
                    name,
                    f"RULER {asked[0].length}",
                    f"string_match_{asked[0].match}",
                    chance=0.0,
                    details={model: {"length": asked[0].length} for model in values},
                )
                for name, asked in samples.items()
            ],
            {
                model: {task: Answers.of_items(items) for task, items in by_task.items()}
                for model, by_task in values.items()
            },
            {reader.name: reader.role for reader in answered},
            resamples=self.resamples,
            seed=self.seed,
        )
        return tuple(
            restoration.model(
                reader.name,
                weights=reader.candidate.fingerprint,
                window=reader.window,
                by_length=_by_length(restoration.results(reader.name)),
            )
            for reader in answered
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
        known = [error for error in errors if error is not None]
        largest = 100 * max(known) if known and len(known) == len(errors) else None
        rows.append((model.name, *(mean and 100 * mean.value for mean in means), largest))
    return ResultTable(
        name=record.marked("ruler", "_limit_"),
        title=f"RULER, mean over tasks by length (0 to 100{record.marked('', LIMITED)})",
        columns=("model", *map(str, record.lengths), "largest stderr"),
        rows=tuple(rows),
        formats=("", *(".1f" for _ in record.lengths), ".1f"),
        notes=("- where a length is beyond the model's window.", UNKNOWN_ERROR),
    )


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
