"""All candidates on tasks of the short suite, each task of each model at most once.

A finished task is cached at once. So a stopped evaluation goes on where it was, and a sweep
never evaluates the same task twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from src.evals.preparing import Prepared, Questions, gold_of, prepare, too_long
from src.evals.restoration import Answers
from src.evals.sandbox import NAMES
from src.evals.scoring import cache_key, made
from src.evals.seconds import SECONDS
from src.evals.suite import Candidate, Evaluation, EvaluationError

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from src.evals.harness import TokenBudgetLM

# lm-eval's own seed for drawing few-shot examples.
_FEWSHOT_SEED = 1234


@dataclass
class Measured:
    """Answers by model and task, items in the documents' order; and what went with them."""

    answers: dict[str, dict[str, Answers]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """lm-eval's figures by model, then by its own task names."""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # of what was evaluated now
    failures: dict[str, str] = field(default_factory=dict)  # by task, model, or both

    def keep(self, model: str, task: str, value: Mapping[str, Any]) -> None:
        """Take a value of the cache."""
        self.answers.setdefault(model, {})[task] = Answers(**value["answers"])
        self.results.setdefault(model, {}).update(value["results"])


def measure(evaluation: Evaluation, questions: Questions) -> Measured:
    """Every candidate on every task, cheap tasks first; complete on rank 0 only."""
    if _only_random(evaluation):
        # Their tokens are bytes, so that long prompts exceed any window. What they score means
        # nothing anyway; what counts is that every task runs.
        questions = replace(questions, cut_middle=True)
        if evaluation.is_main:
            print("random weights: texts longer than the window lose their middle", flush=True)
    prepared, failures = prepare(questions)
    failures |= too_long(prepared, evaluation)
    prepared = [task for task in prepared if task.definition.name not in failures]
    if evaluation.is_main:
        for task in prepared:
            if place := task.definition.sandbox:
                print(f"{task.definition.name} runs generated code in {NAMES[place]}", flush=True)
    measured = Measured(failures=failures)
    # A task that cannot be identified has no place in the cache.
    digests = ((task.definition.name, partial(getattr, task, "digest")) for task in prepared)
    hashes = made(digests, failures)
    identified = [task for task in prepared if task.definition.name in hashes]
    checked: dict[str, dict[str, Task]] = {}
    for candidate in evaluation.candidates:
        try:
            _measure(evaluation, questions, candidate, identified, checked, measured)
        except EvaluationError as error:
            failures[candidate.name] = str(error)
    return measured


def _only_random(evaluation: Evaluation) -> bool:
    """Whether no model has weights that mean anything."""
    return all(candidate.model.random_weights for candidate in evaluation.candidates)


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
            measured.keep(candidate.name, name, value)
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
            cut_middle=questions.cut_middle,
            fused=evaluation.fused,
            rank=evaluation.rank,
            size=evaluation.size,
        )
        waiting = [task for task in prepared if task.definition.name in missing]
        waiting.sort(key=lambda task: task.cost(questions.limit))
        for position, task in enumerate(waiting, start=1):
            name = task.definition.name
            lm.label = f"{name}, {candidate.name} ({position} of {len(waiting)})"
            if name in measured.failures:
                continue
            failed = name
            try:
                if name not in checked:
                    with SECONDS.of("building tasks"):
                        checked[name] = task.checked(questions.limit)
                failed = f"{name}, {candidate.name}"
                began = time.perf_counter()
                scored = run_task(
                    lm, checked[name], score=task.definition.score, limit=questions.limit
                )
            except EvaluationError as error:
                measured.failures[failed] = str(error)
                continue
            if scored is not None:
                seconds = round(time.perf_counter() - began, 3)
                value = {"answers": asdict(scored[0]), "results": scored[1], "seconds": seconds}
                evaluation.cache.put(keys[name], value)
                measured.keep(candidate.name, name, value)
                measured.seconds.setdefault(candidate.name, {})[name] = seconds


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
        content=f"{task.digest} cut" if questions.cut_middle else task.digest,
        lm_eval=metadata.version("lm_eval"),
        limit=questions.limit,
    )


def run_task(
    lm: TokenBudgetLM, tasks: Mapping[str, Task], *, score: str, limit: int | None
) -> tuple[Answers, dict[str, Any]] | None:
    """Evaluate one task, or the subjects of one, with lm-eval.

    Every process that shares the work calls this with the same tasks. If there are fewer items
    than processes, the first does it alone.

    `score` is the metric that counts, `limit` that of the task's items, or of each subject's.

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
    lm.take_cut()  # those of a task that has failed
    evaluated = evaluator.evaluate(
        cast("Any", lm),
        {"tasks": dict(tasks), "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    cut = lm.take_cut()
    if evaluated is None:
        return None
    figures = cast("dict[str, Any]", evaluated)
    samples = _samples(figures, tasks, score)
    first, task = next(iter(tasks.items()))
    answers = _answers(samples, score, task)
    if answers.gold is not None:
        figures["results"][first]["acc_characters"] = _by_characters(samples, answers.gold)
    results = _results(figures, tasks)
    if cut is not None:
        results[first]["texts_cut"] = cut
    return answers, results


def _samples(
    figures: Mapping[str, Any], tasks: Mapping[str, Task], score: str
) -> list[dict[str, Any]]:
    """All tasks' samples, each task's in the order of its documents."""
    samples = []
    for name in tasks:
        scored = [sample for sample in figures["samples"][name] if score in sample]
        # With several answer filters lm-eval lists each item for each. The last one's are kept: of
        # GSM8K's that is any number at the end, as in our own task.
        first = [sample for sample in scored if sample["filter"] == scored[-1]["filter"]]
        samples += sorted(first, key=lambda sample: sample["doc_id"])
    return samples


def _by_characters(samples: Sequence[dict[str, Any]], gold: Sequence[int]) -> float:
    """Accuracy by log-likelihood per character of the answer, its leading blank included.

    lm-eval's acc_norm counts characters without the blank.
    """
    right = [
        _likeliest(sample, [request[1] for request in sample["arguments"]]) == answer
        for sample, answer in zip(samples, gold, strict=True)
    ]
    return sum(right) / len(right)


def _likeliest(sample: dict[str, Any], per_character_of: Sequence[str] | None) -> int:
    """The choice of the largest log-likelihood, maybe per character of these texts."""
    nats = np.array([float(response[0]) for response in sample["filtered_resps"]])
    if per_character_of is not None:
        nats = nats / np.array([float(len(text)) for text in per_character_of])
    return int(np.argmax(nats))


def _answers(samples: Sequence[dict[str, Any]], score: str, task: Any) -> Answers:
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
    predicted, gold = [], []
    for sample in samples:
        # By lm-eval's rule.
        choices = task.doc_to_choice(sample["doc"])
        predicted.append(_likeliest(sample, choices if score == "acc_norm" else None))
        gold.append(gold_of(task, sample["doc"], choices))
    return Answers(scores, weights, predicted, gold)


def _results(evaluated: Mapping[str, Any], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """lm-eval's figures by its task names, without those that it could not compute."""
    kept = {}
    for name in tasks:
        figures = evaluated["results"][name]
        numbers = {k: value for k, value in figures.items() if isinstance(value, (int, float))}
        version = str(evaluated["versions"].get(name))
        kept[name] = numbers | {"version": version, "n-shot": evaluated["n-shot"].get(name)}
    return kept
