"""lm-eval at work: our batches under its tasks, and an item's figures out of its samples.

lm-eval builds the requests, filters the answers and scores them. What is ours is how a model is
asked: texts are tokenized together, batches hold a number of tokens rather than of texts, equal
inputs run once (the letters of a multiple choice differ only in the token that is scored), logits
are made only for the tokens that are scored, and a text that is longer than the model's window is
refused rather than cut.

Shape suffixes: b inputs, t tokens, h hidden size, n scored tokens.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from jinja2 import TemplateError
from lm_eval import evaluator, utils
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from torch import Tensor, distributed

from src.evals.generation import continued
from src.evals.suite import NOT_FINITE, EvaluationError
from src.models.shapes import frequency_class
from src.progress import Meter, meter

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Logits are made for this many tokens at once.
_HEAD_CHUNK = 8192
# lm-eval's own seed for drawing few-shot examples.
_FEWSHOT_SEED = 1234

# What lm-eval's templates and scorers raise over an item that they were not made for.
MISFITS = (
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(SyntaxError, TemplateError),
)

# lm-eval compiles a task's templates again for every item, which takes most of its time; a compiled
# one gives the same text.
_environment: Any = utils.env
_environment.from_string = functools.lru_cache(maxsize=256)(_environment.from_string)
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# Its bars would fill a log file; progress is shown by our own.
_task_module: Any = importlib.import_module("lm_eval.api.task")
_task_module.tqdm = lambda items, **_: items


# Its decorator hides the class from type checkers.
_HFLM: Any = HFLM


@dataclass(frozen=True)
class Answers:
    """What a model made of a task, an entry for each item in the documents' order.

    The task's value is sum(score) / sum(weight).

    Attributes:
        score: right or wrong, a share, or bits.
        weight: 1, or bytes.
        predicted: the answer that was chosen, where there are choices.
        gold: the right one.
    """

    score: list[float]
    weight: list[float]
    predicted: list[int] | None = None
    gold: list[int] | None = None


@dataclass(frozen=True)
class TaskRun:
    """A task's answers and lm-eval's own results, by lm-eval's task names."""

    answers: Answers
    results: dict[str, Any]


class TokenBudgetLM(_HFLM):
    """lm-eval's Hugging Face model with batches of a number of tokens."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        window: int,
        batch_tokens: int,
        generation_tokens: int | Literal["auto"],
        name: str,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        """Wrap a loaded model.

        Args:
            network: on its device, in evaluation mode.
            tokenizer: its tokenizer.
            window: tokens that a request may have, answer included.
            batch_tokens: tokens of a forward pass, padding included; one text at least.
            generation_tokens: tokens of a batch that is generated, prompts and answers; `auto`
                fills a GPU's memory.
            name: for the progress line.
            rank: of this process among those that share the work.
            size: how many share the work.

        Raises:
            EvaluationError: the model's logits are not its output head's alone.
        """
        super().__init__(
            pretrained=network, backend="causal", tokenizer=tokenizer, max_length=window
        )
        self._rank, self._world_size = rank, size
        self._window = window
        self._batch_tokens = batch_tokens
        self._generation_tokens: int | Literal["auto"] = generation_tokens
        self.label = name
        self._decoder = network.get_decoder()
        head = network.get_output_embeddings()
        assert head is not None, "a causal language model has an output head"
        self._head = head
        self._check_head(network)

    @torch.no_grad()
    def _check_head(self, network: PreTrainedModel) -> None:
        ids = torch.arange(8, device=network.device)[None] % network.config.vocab_size
        whole = network(ids, use_cache=False).logits.float()
        ours = self._head(self._decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
        if not torch.allclose(whole, ours, rtol=1e-2, atol=1e-2):
            raise EvaluationError(
                f"{self.label}: this model changes its logits after the output head, which is not "
                "supported here"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, this process shares its work with no other."""
        size, self._world_size = self._world_size, 1
        try:
            yield
        finally:
            self._world_size = size

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Tensors of all processes, stacked."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            distributed.barrier()

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, in nats, and whether it is the greedy one."""
        del disable_tqdm
        pairs = self._encode_pairs([cast("tuple[str, str]", r.args) for r in requests])
        self._refuse_too_long([len(context) + len(answer) for context, answer in pairs])
        with meter(self.label, len(pairs), quiet=self.rank > 0) as progress:
            found = self._score(pairs, progress)
        if self._largest(any(not math.isfinite(nats) for nats, _ in found)):
            raise EvaluationError(NOT_FINITE)
        return found

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Tokens of contexts and answers, split as lm-eval splits them.

        Blanks at a context's end belong to the answer; the answer's tokens are what the whole text
        has beyond the context's.
        """
        contexts, wholes = [], []
        for context, answer in pairs:
            kept = context.rstrip()
            contexts.append(kept)
            wholes.append(context + answer)
        unique = list(dict.fromkeys(contexts))
        lengths = {text: len(ids) for text, ids in zip(unique, self._ids(unique), strict=True)}
        encoded = []
        for context, whole in zip(contexts, self._ids(wholes), strict=True):
            if context == "":
                if whole and whole[0] == self.prefix_token_id:
                    encoded.append((whole[:1], whole[1:]))
                else:
                    encoded.append(([self.prefix_token_id], whole))
            else:
                cut = lengths[context]
                encoded.append((whole[:cut], whole[cut:]))
        return encoded

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts; one that begins with the start token gets no second one."""
        start = self.tokenizer.decode([self.prefix_token_id])
        marked = [has_bos_prefix(text, start) for text in texts]
        found: list[list[int]] = [[] for _ in texts]
        for has_start in (False, True):
            chosen = [i for i, mark in enumerate(marked) if mark == has_start and texts[i]]
            if not chosen:
                continue
            options = {"add_special_tokens": False} if has_start else {}
            ids = self.tokenizer([texts[i] for i in chosen], verbose=False, **options)["input_ids"]
            for i, tokens in zip(chosen, ids, strict=True):
                found[i] = tokens
        return found

    def _refuse_too_long(self, lengths: Sequence[int]) -> None:
        longest = self._largest(max(lengths, default=0))
        if longest > self._window:
            raise EvaluationError(
                f"a text of {longest} tokens does not fit the model's window of {self._window}"
            )

    def _largest(self, value: int) -> int:
        """The largest of all processes' values: all of them refuse what one has to refuse."""
        if self.world_size == 1:
            return value
        every: list[Any] = [None] * self.world_size
        distributed.all_gather_object(every, value)
        return max(every)

    @torch.no_grad()
    def _score(
        self, pairs: Sequence[tuple[list[int], list[int]]], progress: Meter
    ) -> list[tuple[float, bool]]:
        by_input: dict[tuple[int, ...], list[int]] = {}
        for index, (context, answer) in enumerate(pairs):
            by_input.setdefault(tuple(context + answer[:-1]), []).append(index)
        inputs = sorted(by_input, key=len, reverse=True)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        kinds = [frequency_class(self.model.config, len(tokens)) for tokens in inputs]
        for batch in _batches(inputs, kinds, self._batch_tokens):
            width = len(batch[0])
            ids_bt = torch.zeros(len(batch), width, dtype=torch.long)
            places, targets, owners = [], [], []
            for row, tokens in enumerate(batch):
                ids_bt[row, : len(tokens)] = torch.tensor(tokens)
                for owner in by_input[tokens]:
                    answer = pairs[owner][1]
                    first = row * width + len(tokens) - len(answer)
                    places += range(first, first + len(answer))
                    targets += answer
                    owners += [owner] * len(answer)
            nats, greedy = self._token_scores(ids_bt, places, targets)
            sums, right = np.zeros(len(pairs)), np.ones(len(pairs), dtype=bool)
            np.add.at(sums, owners, nats)
            np.logical_and.at(right, owners, greedy)
            done = sorted(set(owners))
            for owner in done:
                found[owner] = (float(sums[owner]), bool(right[owner]))
            progress.advance(len(done))
        return found

    def _token_scores(
        self, ids_bt: Tensor, places: Sequence[int], targets: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of tokens at flat places of a batch, and whether they are likeliest.

        Padding is on the right, where causal attention does not see it.
        """
        device = self.device
        hidden_bth = self._decoder(
            input_ids=ids_bt.to(device, non_blocking=True), use_cache=False
        ).last_hidden_state
        # Letters of one question are scored at one place.
        unique, inverse = np.unique(np.asarray(places), return_inverse=True)
        hidden_nh = hidden_bth.flatten(0, 1)[torch.from_numpy(unique).to(device)]
        nats, likeliest = [], []
        wanted = torch.tensor(targets, device=device)
        order = np.argsort(inverse, kind="stable")
        starts = np.arange(0, len(unique) + _HEAD_CHUNK, _HEAD_CHUNK)
        bounds = np.searchsorted(inverse[order], starts)
        for chunk, start in enumerate(range(0, len(unique), _HEAD_CHUNK)):
            logits_nv = self._head(hidden_nh[start : start + _HEAD_CHUNK]).float()
            mine = order[bounds[chunk] : bounds[chunk + 1]]
            rows = torch.from_numpy(inverse[mine] - start).to(device)
            tokens = wanted[torch.from_numpy(mine).to(device)]
            normal_n = logits_nv.logsumexp(-1)
            nats.append(logits_nv[rows, tokens] - normal_n[rows])
            likeliest.append(logits_nv.argmax(-1)[rows] == tokens)
        back = np.argsort(order, kind="stable")
        return (
            torch.cat(nats).double().cpu().numpy()[back],
            torch.cat(likeliest).cpu().numpy()[back],
        )

    @torch.no_grad()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The model's own continuation of each prompt, up to its stop sequences."""
        del disable_tqdm
        asked = [cast("tuple[str, dict[str, Any]]", r.args) for r in requests]
        # Without a token there is nothing to go on from.
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text, _ in asked]
        settings = [normalize_gen_kwargs(kwargs, self.max_gen_toks) for _, kwargs in asked]
        longest = [p.get("max_gen_toks", self.max_gen_toks) for p in settings]
        self._refuse_too_long([len(p) + n for p, n in zip(prompts, longest, strict=True)])
        found = [""] * len(asked)
        groups: dict[str, list[int]] = {}
        for index, (_, kwargs) in enumerate(asked):
            groups.setdefault(repr(sorted(kwargs.items())), []).append(index)
        with meter(self.label, len(asked), quiet=self.rank > 0) as progress:
            for members in groups.values():
                self._generate_group(members, prompts, dict(settings[members[0]]), found, progress)
        return found

    def _generate_group(
        self,
        members: Sequence[int],
        prompts: Sequence[list[int]],
        kwargs: dict[str, Any],
        found: list[str],
        progress: Meter,
    ) -> None:
        """Generate for prompts that share their settings; fills `found`."""
        room = kwargs.pop("max_gen_toks")
        eos = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        stop = handle_stop_sequences(kwargs.pop("until", None), eos=eos)
        if kwargs.pop("do_sample", False) or kwargs.pop("temperature", 0.0) or kwargs:
            raise EvaluationError(
                f"{self.label}: the task wants answers generated otherwise than greedily, which is "
                "not supported here"
            )
        answers = continued(
            self.model,
            self.tokenizer,
            [prompts[index] for index in members],
            [room] * len(members),
            batch_tokens=self._generation_tokens,
            enough=lambda _, text: any(end in text for end in stop),
            progress=progress,
        )
        for index, text in zip(members, answers, strict=True):
            found[index] = postprocess_generated_text(text, stop, None)


def _batches(ordered: Sequence[Any], kinds: Sequence[int], budget: int) -> Iterator[list[Any]]:
    """Runs of one kind, longest first, each of at most `budget` tokens as padded to its first."""
    batch: list[Any] = []
    before = 0
    for entry, kind in zip(ordered, kinds, strict=True):
        if batch and (kind != before or (len(batch) + 1) * len(batch[0]) > budget):
            yield batch
            batch = []
        batch.append(entry)
        before = kind
    if batch:
        yield batch


def check_items(tasks: Mapping[str, Task], limit: int | None, *, scored: bool = True) -> None:
    """Refuse items that their task cannot ask or score.

    Every process looks at all items, so that none waits for one that has stopped at a damaged item.

    Args:
        tasks: lm-eval's tasks by name.
        limit: of the task's items, or of each subject's.
        scored: also score an empty answer; not where that would run programs.

    Raises:
        EvaluationError: it names the first such item.
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
    """What lm-eval makes of an item, without a model."""
    requests = task.construct_requests(doc, task.fewshot_context(doc, num_fewshot=0))
    requests = requests if isinstance(requests, list) else [requests]
    texts = [part for r in requests for part in r.args if not isinstance(part, dict)]
    if not requests or not all(isinstance(text, str) for text in texts):
        raise TypeError("a question or an answer is no text")
    # As an example of another item it is shown with its answer.
    task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "multiple_choice":
        right = _gold(task, doc, task.doc_to_choice(doc))
        if not 0 <= right < len(requests):
            raise ValueError(f"the right answer is number {right} of {len(requests)}, from 0")
    if scored:
        answer = "" if task.OUTPUT_TYPE == "generate_until" else (0.0, False)
        task.process_results(doc, [answer] * len(requests))


def run_task(
    lm: TokenBudgetLM, tasks: Mapping[str, Task], *, score: str, limit: int | None
) -> TaskRun | None:
    """Evaluate one task, or the subjects of one, with lm-eval.

    Every process that shares the work calls it with the same tasks. The first does it alone where
    there are fewer items than processes.

    Args:
        lm: the model.
        tasks: lm-eval's tasks by name.
        score: the metric that counts.
        limit: of the task's items, or of each subject's.

    Returns:
        The result on rank 0, None elsewhere.

    Raises:
        EvaluationError: a text is longer than the model's window, or the model's logits are not
            finite.
    """
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
    found = evaluator.evaluate(
        cast("Any", lm),
        {"tasks": dict(tasks), "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    if found is None:
        return None
    plain = cast("dict[str, Any]", found)
    samples = [
        sample
        for name in tasks
        for sample in sorted(
            _first_filter(plain["samples"][name], score), key=lambda s: s["doc_id"]
        )
    ]
    task = next(iter(tasks.values()))
    answers = _answers(samples, score, task)
    if answers.gold is not None:
        plain["results"][next(iter(tasks))]["acc_characters"] = _by_characters(
            samples, answers.gold
        )
    return TaskRun(answers, _results(plain, tasks))


def _by_characters(samples: Sequence[dict[str, Any]], gold: Sequence[int]) -> float:
    """Accuracy by log-likelihood a character of the answer as scored, its leading blank included.

    lm-eval's acc_norm counts without the blank.
    """
    right = 0
    for sample, answer in zip(samples, gold, strict=True):
        nats = np.array([float(response[0]) for response in sample["filtered_resps"]])
        lengths = np.array([float(len(request[1])) for request in sample["arguments"]])
        right += int(np.argmax(nats / lengths)) == answer
    return right / len(gold)


def _first_filter(samples: Sequence[dict[str, Any]], score: str) -> list[dict[str, Any]]:
    """Samples of one of the answer filters; of several, lm-eval lists each item once for each."""
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
    """The chosen answer of a multiple choice and the right one, as lm-eval decides them."""
    doc = sample["doc"]
    choices = task.doc_to_choice(doc)
    nats = np.array([float(response[0]) for response in sample["filtered_resps"]])
    if score == "acc_norm":
        nats = nats / np.array([float(len(choice)) for choice in choices])
    return int(np.argmax(nats)), _gold(task, doc, choices)


def _gold(task: Any, doc: dict[str, Any], choices: Sequence[str]) -> int:
    """The right answer's number."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return choices.index(gold) if isinstance(gold, str) else int(gold)


def _results(found: Mapping[str, Any], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """lm-eval's figures by its task names, without what it could not compute."""
    kept = {}
    for name in tasks:
        figures = found["results"][name]
        kept[name] = {
            key: value for key, value in figures.items() if isinstance(value, (int, float))
        } | {"version": str(found["versions"].get(name)), "n-shot": found["n-shot"].get(name)}
    return kept
