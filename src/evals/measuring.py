"""All candidates on tasks of the short suite, each task of each model at most once.

A finished task is cached at once. So a stopped evaluation goes on where it was, and a sweep
never evaluates the same task twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from src.evals.preparing import Prepared, Questions, gold_of, prepare
from src.evals.restoration import Answers
from src.evals.scoring import cache_key
from src.evals.suite import Candidate, Evaluation, EvaluationError

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from src.evals.harness import TokenBudgetLM

# lm-eval's own seed for drawing few-shot examples.
_FEWSHOT_SEED = 1234


@dataclass
class Measured:
    """Answers by model and task, and failures.

    Attributes:
        answers: by model's and task's name; items in the documents' order.
        results: lm-eval's figures by model's name, then by its own task names.
        seconds: by model's and task's name, of those evaluated now.
        failures: by task, model, or both.
    """

    answers: dict[str, dict[str, Answers]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure(evaluation: Evaluation, questions: Questions) -> Measured:
    """Every candidate on every task; complete on rank 0 only."""
    prepared, failures = prepare(questions)
    measured = Measured(failures=failures)
    identified = [task for task in prepared if _is_known(task, failures)]
    checked: dict[str, dict[str, Task]] = {}
    for candidate in evaluation.candidates:
        try:
            _measure(evaluation, questions, candidate, identified, checked, measured)
        except EvaluationError as error:
            measured.failures[candidate.name] = str(error)
    return measured


def _is_known(task: Prepared, failures: dict[str, str]) -> bool:
    """Whether a task can be identified for the cache; if not, `failures` gets why."""
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
    cached = {name: evaluation.cache.get(key) for name, key in keys.items()}
    # One process decides, since the others may see the cache at another moment.
    missing = evaluation.agreed([name for name, value in cached.items() if value is None])
    for name, value in cached.items():
        if name not in missing and value is not None:
            _keep(measured, candidate.name, name, value)
    if not missing:
        return
    from src.evals.harness import TokenBudgetLM

    with evaluation.loaded(candidate) as network:
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
    """The cached answers, lm-eval results and seconds of a task; None on other ranks than 0."""
    began = time.perf_counter()
    run = run_task(lm, tasks, score=score, limit=limit)
    if run is None:
        return None
    seconds = round(time.perf_counter() - began, 3)
    answers, results = run
    return {"answers": asdict(answers), "results": results, "seconds": seconds}


def _keep(measured: Measured, model: str, task: str, value: Mapping[str, Any]) -> None:
    measured.answers.setdefault(model, {})[task] = Answers(**value["answers"])
    measured.results.setdefault(model, {}).update(value["results"])


def _key(
    evaluation: Evaluation, questions: Questions, candidate: Candidate, task: Prepared
) -> dict[str, Any]:
    return cache_key(
        evaluation,
        candidate,
        "short",
        generates=task.definition.generates,
        task=task.definition.name,
        version=str(task.definition.config["metadata"]["version"]),
        content=task.digest,
        lm_eval=metadata.version("lm_eval"),
        limit=questions.limit,
    )


def run_task(
    lm: TokenBudgetLM, tasks: Mapping[str, Task], *, score: str, limit: int | None
) -> tuple[Answers, dict[str, Any]] | None:
    """Evaluate one task, or the subjects of one, with lm-eval.

    Every process that shares the work calls this with the same tasks. If there are fewer items
    than processes, the first does it alone.

    Args:
        lm: the model.
        tasks: lm-eval's tasks by name.
        score: the metric that counts.
        limit: of the task's items, or of each subject's.

    Returns:
        The answers and lm-eval's figures by its task names on rank 0, None elsewhere.

    Raises:
        EvaluationError: a text is longer than the model's window, or the model's logits are not
            finite.
    """
    from lm_eval import evaluator

    fewest = min(len(task.eval_docs) for task in tasks.values())
    if min(fewest, limit or fewest) < lm.world_size:
        # lm-eval needs an item for every process.
        if lm.rank > 0:
            return None
        with lm.alone():
            return run_task(lm, tasks, score=score, limit=limit)
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(_FEWSHOT_SEED)
        task._instances = None  # of the model before
    evaluated = evaluator.evaluate(
        cast("Any", lm),
        {"tasks": dict(tasks), "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    if evaluated is None:
        return None
    figures = cast("dict[str, Any]", evaluated)
    samples = [
        sample
        for name in tasks
        for sample in sorted(
            _first_filter(figures["samples"][name], score), key=lambda s: s["doc_id"]
        )
    ]
    task = next(iter(tasks.values()))
    answers = _answers(samples, score, task)
    if answers.gold is not None:
        figures["results"][next(iter(tasks))]["acc_characters"] = _by_characters(
            samples, answers.gold
        )
    return answers, _results(figures, tasks)


def _by_characters(samples: Sequence[dict[str, Any]], gold: Sequence[int]) -> float:
    """Accuracy by log-likelihood per character of the answer, its leading blank included.

    lm-eval's acc_norm counts characters without the blank.
    """
    right = 0
    for sample, answer in zip(samples, gold, strict=True):
        nats = np.array([float(response[0]) for response in sample["filtered_resps"]])
        lengths = np.array([float(len(request[1])) for request in sample["arguments"]])
        right += int(np.argmax(nats / lengths)) == answer
    return right / len(gold)


def _first_filter(samples: Sequence[dict[str, Any]], score: str) -> list[dict[str, Any]]:
    """Samples of the first answer filter. With several filters lm-eval lists each item for each."""
    scored = [sample for sample in samples if score in sample]
    chosen = scored[-1]["filter"]
    return [sample for sample in scored if sample["filter"] == chosen]


def _answers(samples: Sequence[dict[str, Any]], score: str, task: Task) -> Answers:
    scores, weights = [], []
    for sample in samples:
        value = sample[score]
        if isinstance(value, (tuple, list)):
            nats, length = value
            scores.append(-float(nats) / math.log(2))
            weights.append(float(length))
        else:
            scores.append(float(value))
            weights.append(1.0)
    if task.OUTPUT_TYPE != "multiple_choice":
        return Answers(scores, weights)
    chosen = [_choice(sample, score, cast("Any", task)) for sample in samples]
    return Answers(scores, weights, [p for p, _ in chosen], [g for _, g in chosen])


def _choice(sample: dict[str, Any], score: str, task: Any) -> tuple[int, int]:
    """The chosen and the right answer of a multiple choice, by lm-eval's rule."""
    doc = sample["doc"]
    choices = task.doc_to_choice(doc)
    nats = np.array([float(response[0]) for response in sample["filtered_resps"]])
    if score == "acc_norm":
        nats = nats / np.array([float(len(choice)) for choice in choices])
    return int(np.argmax(nats)), gold_of(task, doc, choices)


def _results(evaluated: Mapping[str, Any], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """lm-eval's figures by its task names, without those that it could not compute."""
    kept = {}
    for name in tasks:
        figures = evaluated["results"][name]
        kept[name] = {
            key: value for key, value in figures.items() if isinstance(value, (int, float))
        } | {
            "version": str(evaluated["versions"].get(name)),
            "n-shot": evaluated["n-shot"].get(name),
        }
    return kept
