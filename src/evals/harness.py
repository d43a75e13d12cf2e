"""A model for lm-eval, with our batches.

lm-eval builds the requests, filters the answers and scores them. This module runs the model:

- texts are tokenized together, and a batch holds a number of tokens, not of texts;
- equal inputs run once: the letters of a multiple choice differ only in the scored token;
- logits are computed only for the scored tokens;
- a text that is longer than the model's window is refused, or loses its middle if that is asked
  for.

Shape suffixes: b inputs, t tokens, h hidden size, n scored tokens.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from lm_eval import utils
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from torch import Tensor, distributed

from src.evals.generation import continued
from src.evals.losses import SplitModel
from src.evals.seconds import SECONDS
from src.evals.suite import NOT_FINITE, EvaluationError
from src.models.shapes import frequency_class
from src.progress import Meter, meter

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Logits are computed for this many tokens at once.
_HEAD_CHUNK = 8192

# lm-eval compiles a task's templates again for every item, which takes most of its time; a compiled
# one gives the same text.
_environment: Any = utils.env
_environment.from_string = functools.lru_cache(maxsize=256)(_environment.from_string)
logging.getLogger("lm_eval").setLevel(logging.ERROR)
# Its progress bars would fill a log file; this program shows its own.
_task_module: Any = importlib.import_module("lm_eval.api.task")
_task_module.tqdm = lambda items, **_: items


# Its decorator hides the class from type checkers.
_HFLM: Any = HFLM


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
        cut_middle: bool = False,
        fused: bool = False,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        """Wrap a loaded model, on its device and in evaluation mode.

        A request may have `window` tokens, answer included, and a forward pass `batch_tokens`,
        padding included, but one text at least. `generation_tokens` and `cut_middle` are as in
        `Questions`, `fused`, `rank` and `size` as in `Evaluation`. `name` is for the progress line.

        Raises:
            EvaluationError: the model's logits are not the plain product of its output head.
        """
        super().__init__(
            pretrained=network, backend="causal", tokenizer=tokenizer, max_length=window
        )
        self._rank, self._world_size = rank, size
        self._window = window
        self._batch_tokens = batch_tokens
        self._generation_tokens: int | Literal["auto"] = generation_tokens
        self._fused = fused
        self.label = name
        self._cut: int | None = 0 if cut_middle else None
        self._split = SplitModel.of(network)
        ids = torch.arange(8, device=network.device)[None] % network.config.vocab_size
        with torch.no_grad():
            logits = network(ids, use_cache=False).logits.float()
            by_parts = self._split.logits(self._split.hidden(ids))
        if not torch.allclose(logits, by_parts, rtol=1e-2, atol=1e-2):
            raise EvaluationError(
                f"{self.label}: this model changes its logits after the output head, which is not "
                "supported here"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside the block, this process shares its work with no other."""
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
        pairs = self._encode_pairs([cast("tuple[str, str]", r.args) for r in requests])
        rooms = [self._window - len(answer) for _, answer in pairs]
        contexts = self._within([context for context, _ in pairs], rooms)
        pairs = [(context, answer) for context, (_, answer) in zip(contexts, pairs, strict=True)]
        self._refuse_too_long([len(context) + len(answer) for context, answer in pairs])
        shown = meter(self.label, len(pairs), quiet=self.rank > 0)
        with shown as progress, SECONDS.of("reading texts"):
            scores = self._score(pairs, progress)
        if any(self._of_all(any(not math.isfinite(nats) for nats, _ in scores))):
            raise EvaluationError(NOT_FINITE)
        return scores

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Tokens of contexts and answers, split as lm-eval splits them.

        Blanks at the end of a context belong to the answer. The answer's tokens are those of the
        whole text after the context's tokens.
        """
        contexts = [context.rstrip() for context, _ in pairs]
        unique = list(dict.fromkeys(contexts))
        lengths = {text: len(ids) for text, ids in zip(unique, self._ids(unique), strict=True)}
        encoded = []
        wholes = self._ids([context + answer for context, answer in pairs])
        for context, text_ids in zip(contexts, wholes, strict=True):
            cut = lengths[context]
            if context == "":
                # The prefix token stands for an empty context.
                cut = 1
                if text_ids[:1] != [self.prefix_token_id]:
                    text_ids = [self.prefix_token_id, *text_ids]
            encoded.append((text_ids[:cut], text_ids[cut:]))
        return encoded

    @SECONDS.of("tokenizing texts")
    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts. A text that begins with the start token gets no second one."""
        start = self.tokenizer.decode([self.prefix_token_id])
        marked = [has_bos_prefix(text, start) for text in texts]
        token_ids: list[list[int]] = [[] for _ in texts]
        for has_start in (False, True):
            chosen = [i for i, mark in enumerate(marked) if mark == has_start and texts[i]]
            if not chosen:
                continue
            options = {"add_special_tokens": False} if has_start else {}
            ids = self.tokenizer([texts[i] for i in chosen], verbose=False, **options)["input_ids"]
            for i, tokens in zip(chosen, ids, strict=True):
                token_ids[i] = tokens
        return token_ids

    def _within(self, contexts: list[list[int]], rooms: Sequence[int]) -> list[list[int]]:
        """Contexts, without their middle where they are longer than their room."""
        if self._cut is None:
            return contexts
        # The choices of a question share its context.
        self._cut += len({tuple(c) for c, n in zip(contexts, rooms, strict=True) if len(c) > n})
        ends = [(c, n - n // 2, n // 2) for c, n in zip(contexts, rooms, strict=True)]
        return [
            c if len(c) <= first + last else c[:first] + c[len(c) - last :]
            for c, first, last in ends
        ]

    def take_cut(self) -> int | None:
        """How many texts all processes have cut since the last call; None if none may be cut."""
        if self._cut is None:
            return None
        cut, self._cut = self._cut, 0
        return sum(self._of_all(cut))

    def _refuse_too_long(self, lengths: Sequence[int]) -> None:
        # All processes refuse what one of them must refuse.
        longest = max(self._of_all(max(lengths, default=0)))
        if longest > self._window:
            raise EvaluationError(
                f"a text of {longest} tokens does not fit the model's window of {self._window}: "
                "leave the task out (tasks), or evaluate a model with a larger window"
            )

    def _of_all(self, value: int) -> list[int]:
        """The values of all processes."""
        if self.world_size == 1:
            return [value]
        every: list[Any] = [None] * self.world_size
        distributed.all_gather_object(every, value)
        return every

    @torch.no_grad()
    def _score(
        self, pairs: Sequence[tuple[list[int], list[int]]], progress: Meter
    ) -> list[tuple[float, bool]]:
        by_input: dict[tuple[int, ...], list[int]] = {}
        for index, (context, answer) in enumerate(pairs):
            by_input.setdefault(tuple(context + answer[:-1]), []).append(index)
        inputs = sorted(by_input, key=len, reverse=True)
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
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
                scores[owner] = (float(sums[owner]), bool(right[owner]))
            progress.advance(len(done))
        return scores

    def _token_scores(
        self, ids_bt: Tensor, places: Sequence[int], targets: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of tokens at flat positions of a batch, and whether they are likeliest.

        Padding is on the right, where causal attention does not see it.
        """
        device = self.device
        hidden_bth = self._split.hidden(ids_bt.to(device, non_blocking=True))
        # Letters of one question are scored at one place.
        unique, inverse = np.unique(np.asarray(places), return_inverse=True)
        hidden_nh = hidden_bth.flatten(0, 1)[torch.from_numpy(unique).to(device)]
        nats, likeliest = [], []
        wanted = torch.tensor(targets, device=device)
        order = np.argsort(inverse, kind="stable")
        starts = np.arange(0, len(unique) + _HEAD_CHUNK, _HEAD_CHUNK)
        bounds = np.searchsorted(inverse[order], starts)
        for chunk, start in enumerate(range(0, len(unique), _HEAD_CHUNK)):
            logits_nv = self._split.logits(hidden_nh[start : start + _HEAD_CHUNK])
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
        asked = [cast("tuple[str, dict[str, Any]]", r.args) for r in requests]
        # A model cannot continue an empty prompt.
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text, _ in asked]
        settings = [normalize_gen_kwargs(kwargs, self.max_gen_toks) for _, kwargs in asked]
        longest = [p.get("max_gen_toks", self.max_gen_toks) for p in settings]
        prompts = self._within(prompts, [self._window - n for n in longest])
        self._refuse_too_long([len(p) + n for p, n in zip(prompts, longest, strict=True)])
        answers = [""] * len(asked)
        groups: dict[str, list[int]] = {}
        for index, (_, kwargs) in enumerate(asked):
            groups.setdefault(repr(sorted(kwargs.items())), []).append(index)
        with meter(self.label, len(asked), quiet=self.rank > 0) as progress:
            for members in groups.values():
                kwargs = dict(settings[members[0]])
                self._generate_group(members, prompts, kwargs, answers, progress)
        return answers

    def _generate_group(
        self,
        members: Sequence[int],
        prompts: Sequence[list[int]],
        kwargs: dict[str, Any],
        texts: list[str],
        progress: Meter,
    ) -> None:
        """Generate for prompts that share their settings; fills `texts`."""
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
            progress=progress,
            batch_tokens=self._generation_tokens,
            enough=lambda _, text: any(end in text for end in stop),
            fused=self._fused,
        )
        for index, text in zip(members, answers, strict=True):
            texts[index] = postprocess_generated_text(text, stop, None)


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
