"""The common part of suites that ask every reader the same questions (probes)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from src.evals.halves import Split, named
from src.evals.restoration import Answers, Restoration, TaskFacts
from src.evals.scoring import Count, Probe, Reader, Values, ask, readers_of
from src.evals.suite import Evaluation, Outcome
from src.results import SuiteResults, TaskModel


class Asked(NamedTuple):
    """The answers to a suite's probes, and the probes that failed.

    `fused` says whether models wrote their answers with fused kernels; None if they write none.
    """

    readers: Sequence[Reader]
    probes: Sequence[Probe]
    values: Values
    failures: dict[str, str]
    fused: bool | None = None


@dataclass(frozen=True)
class ProbeSuite(ABC):
    """A base of suites. A subclass makes the probes, and a record of their values.

    Its setting `retrieval`, if it has one, adds the native model with retrieval to the readers.
    """

    limit: Count | None = None  # the most items that are asked, of each task
    split: Split = "all"  # the half of the items that is asked; `all` for both

    name: ClassVar[str]
    needs_run: ClassVar[bool] = False

    @abstractmethod
    def probes(
        self, evaluation: Evaluation, readers: Sequence[Reader], failures: dict[str, str]
    ) -> list[Probe]:
        """The probes. Why a probe cannot be made is put into `failures`."""

    @abstractmethod
    def scored(self, asked: Asked) -> SuiteResults[Any]:
        """The record of the probes' values."""

    def about(self, asked: Asked) -> dict[str, Any]:
        """Fields that all records have."""
        fields = {"limit": self.limit, "split": named(self.split), "failures": asked.failures}
        return fields if asked.fused is None else {**fields, "fused_kernels": asked.fused}

    def note(self, item: Any) -> Mapping[str, Any]:
        """Further fields of an item's line in SUITE.items.jsonl."""
        return {}

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Why probes cannot be made."""
        failures: dict[str, str] = {}
        self.probes(evaluation, self._readers(evaluation), failures)
        return [f"{what}: {message}" for what, message in failures.items()]

    def run(self, evaluation: Evaluation) -> Outcome:
        """Ask every reader all that its window holds."""
        failures: dict[str, str] = {}
        readers = self._readers(evaluation)
        with ThreadPoolExecutor(1) as beside:
            for reader in readers:
                # Reads all weights. `ask` does the same again, so it raises the same errors.
                beside.submit(getattr, reader.candidate, "fingerprint")
            probes = self.probes(evaluation, readers, failures)
        values = ask(evaluation, self.name, readers, probes, failures)
        if not evaluation.is_main:
            return Outcome(None)
        answered = [reader for reader in readers if reader.name in values]
        items = {probe.name: probe.items for probe in probes}
        lines = [
            {"model": model, "task": task, "item": number, **value, **self.note(item)}
            for model, by_task in values.items()
            for task, found in by_task.items()
            if items[task]
            for number, (value, item) in enumerate(zip(found, items[task], strict=True))
        ]
        writes = any(probe.generates for probe in probes)
        fused = evaluation.fused if writes else None
        return Outcome(self.scored(Asked(answered, probes, values, failures, fused)), lines)

    def _readers(self, evaluation: Evaluation) -> list[Reader]:
        return readers_of(evaluation, getattr(self, "retrieval", None))


def task_models(
    facts: Sequence[TaskFacts], asked: Asked, *, resamples: int, seed: int
) -> tuple[TaskModel, ...]:
    """Records of readers whose values are the scores of items."""
    restoration = Restoration(
        facts,
        {
            model: {task: Answers.of_items(items) for task, items in by_task.items()}
            for model, by_task in asked.values.items()
        },
        {reader.name: reader.role for reader in asked.readers},
        resamples=resamples,
        seed=seed,
    )
    return tuple(
        restoration.model(reader.name, weights=reader.candidate.fingerprint, window=reader.window)
        for reader in asked.readers
    )
