"""Greedy answers to many long prompts, in batches.

Which prompts share a batch, when an answer ends, and what is kept of it. `decoding` runs the model.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from src.evals.seconds import SECONDS
from src.evals.suite import EvaluationError
from src.models.shapes import attention_sizes, frequency_class
from src.progress import Meter, meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from src.evals.decoding import Rows

# Steps between two checks for finished rows; a check waits for the device.
LOOK_EVERY = 8
# The share of a GPU's free memory that a batch may take, and that reading prompts may take of it.
MEMORY_SHARE = 0.6
READING_SHARE = 0.25
# More tokens at once are read no faster.
READ_TOKENS = 131_072
CPU_BATCH_TOKENS = 8192


class GenerationError(EvaluationError):
    """Prompts that a model cannot read; the message names the remedy."""


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, window: int, room: Sequence[int]
) -> list[list[int]]:
    """Token ids of prompts, which are never cut.

    Args:
        tokenizer: the model's.
        prompts: texts; none is cut.
        window: positions that the model has.
        room: tokens to generate, by prompt.

    Raises:
        GenerationError: a prompt and what follows do not fit the window; a prompt with two
            beginning-of-text tokens; a tokenizer that ends prompts with an end-of-text token.
    """
    encoded: list[list[int]] = tokenizer(list(prompts), verbose=False)["input_ids"]
    specials: tuple[Any, Any] = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin, end = specials
    for ids, new in zip(encoded, room, strict=True):
        if len(ids) + new > window:
            raise GenerationError(
                f"a prompt of {len(ids)} tokens and {new} to generate are longer than the model's "
                f"window of {window}: choose shorter lengths, or a model scaled to more"
            )
        # Some tokenizers use one token for both.
        if begin is not None and ids.count(begin) > 1:
            raise GenerationError(
                f"a prompt has {ids.count(begin)} beginning-of-text tokens: it must not contain "
                f"{tokenizer.bos_token!r} itself"
            )
        if end is not None and ids[-1] == end:
            raise GenerationError(
                f"the tokenizer ends every text with {tokenizer.eos_token!r}, after which a model "
                "writes no answer: set add_eos_token to false in its configuration"
            )
    return encoded


def batch_rows(
    model: PreTrainedModel, tokens: int, batch_tokens: int | Literal["auto"], held: int = 0
) -> tuple[int, int]:
    """Rows with so many tokens in one batch, and rows that are read at once; at least one each.

    `auto` divides a GPU's free memory: a part for a layer's activations while prompts are read, and
    the rest for keys and values. `held` bytes hold those of earlier rows, and count as free.
    """
    device = next(model.parameters()).device
    if batch_tokens != "auto" or device.type != "cuda":
        batch = CPU_BATCH_TOKENS if batch_tokens == "auto" else batch_tokens
        return max(1, batch // tokens), max(1, min(batch, READ_TOKENS) // tokens)
    config = model.config
    heads, kv_heads, head_dim = attention_sizes(config)
    size = next(model.parameters()).element_size()
    # Also one layer's keys and values, repeated for all heads, for attention that needs them so.
    kept = 2 * config.num_hidden_layers * kv_heads * head_dim + 2 * heads * head_dim
    # The residual, query, key, value and MLP tensors while a prompt is read.
    layer = 4 * heads * head_dim + 4 * config.hidden_size + 4 * config.intermediate_size
    free, _ = torch.cuda.mem_get_info(device)
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    budget = MEMORY_SHARE * (free + reusable + held) / (size * tokens)
    read = max(1, int(min(READ_TOKENS / tokens, READING_SHARE * budget / layer)))
    # Rows that are read have their keys and values twice: as they are made, and where they stay.
    return max(1, int((budget - read * (layer + kept)) / kept)), read


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[array[int]],
    max_new_tokens: Sequence[int],
    *,
    window: int,
    batch_tokens: int | Literal["auto"] = "auto",
    enough: Callable[[int, str], bool] | None = None,
    name: str = "generating",
    kept: KeptRows | None = None,
) -> list[str]:
    """Greedy continuations, without special tokens, in the order of the prompts.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: the model's.
        prompts: texts, or what `encode` has made of them; none is cut.
        max_new_tokens: by prompt.
        window: positions that the model has.
        batch_tokens: prompt tokens of one batch, or `auto`.
        enough: gets a prompt's number and its answer so far, and says whether the answer may stop.
            It is called now and then, so an answer may be longer than needed.
        name: for the progress meter.
        kept: rows of earlier calls for the same model; they are used again where they fit.

    Raises:
        GenerationError: as `encode` does.
    """
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded: Sequence[Sequence[int]] = [p for p in prompts if not isinstance(p, str)]
    if texts:
        with SECONDS.of("tokenizing prompts"):
            encoded = encode(tokenizer, texts, window=window, room=max_new_tokens)
    with meter(name, len(prompts)) as progress:
        return continued(
            model,
            tokenizer,
            encoded,
            max_new_tokens,
            batch_tokens=batch_tokens,
            enough=enough,
            progress=progress,
            kept=kept,
        )


@dataclass
class KeptRows:
    """The latest rows of a model, for the next batch: what was recorded for them stays valid."""

    rows: Rows | None = None

    def of(
        self,
        model: PreTrainedModel,
        lengths: Sequence[int],
        room: int,
        batch_tokens: int | Literal["auto"],
    ) -> tuple[Rows, int, int]:
        """Rows for the last of these prompts, their number, and how many are read at once.

        Args:
            model: that answers.
            lengths: of the prompts that wait, in tokens, the longest last.
            room: tokens of an answer.
            batch_tokens: as `generate` takes it.
        """
        from src.evals.decoding import Rows

        tokens = lengths[-1] + room
        held = 0 if self.rows is None else self.rows.held
        number, read_at_once = batch_rows(model, tokens, batch_tokens, held)
        number = min(number, len(lengths))
        if self.rows is None or not self.rows.fits(number, tokens, room):
            # Their memory goes before new ones take theirs.
            self.rows = None
            self.rows = Rows(model, (number, tokens), room)
        return self.rows, number, read_at_once


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    *,
    batch_tokens: int | Literal["auto"],
    enough: Callable[[int, str], bool] | None,
    progress: Meter,
    kept: KeptRows | None = None,
) -> list[str]:
    """`generate` for token ids that fit the window."""
    answers = [""] * len(encoded)
    kinds = [
        (new, frequency_class(model.config, len(ids), room=new))
        for ids, new in zip(encoded, max_new_tokens, strict=True)
    ]
    # Prompts of similar length share a batch, so that little is padded.
    order = sorted(range(len(encoded)), key=lambda i: (max_new_tokens[i], len(encoded[i])))
    answering = _Batch(model, tokenizer, enough, kept or KeptRows())
    while order:
        # Rows that generate fewer tokens, or are turned otherwise, wait for another batch.
        alike = [i for i in order if kinds[i] == kinds[order[-1]]]
        prompts = {number: encoded[number] for number in alike}
        room = max_new_tokens[alike[-1]]
        answered = answering.run(prompts, room, batch_tokens, answers, progress)
        order = [number for number in order if number not in answered]
    return answers


class _Batch:
    """Rows that are read together and answered together."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        enough: Callable[[int, str], bool] | None,
        kept: KeptRows,
    ) -> None:
        stops: Any = model.generation_config.eos_token_id if model.generation_config else None
        end: Any = tokenizer.eos_token_id
        self._stops = {end, *(stops if isinstance(stops, list) else [stops])}
        self._model, self._tokenizer, self._enough = model, tokenizer, enough
        self._kept = kept

    @torch.no_grad()
    def run(
        self,
        prompts: Mapping[int, Sequence[int]],
        room: int,
        batch_tokens: int | Literal["auto"],
        answers: list[str],
        progress: Meter,
    ) -> set[int]:
        """Answer the last of these prompts, which have a number each, in `answers`.

        Returns:
            The numbers of the prompts that are answered.
        """
        lengths = [len(ids) for ids in prompts.values()]
        with SECONDS.of("reading prompts"):
            rows, number, read_at_once = self._kept.of(self._model, lengths, room, batch_tokens)
            batch = list(prompts)[-number:]
            rows.read([prompts[i] for i in batch], read_at_once)
        with SECONDS.of("writing answers"):
            self._write(rows, batch, room, answers, progress)
        return set(batch)

    def _write(
        self, rows: Rows, batch: Sequence[int], room: int, answers: list[str], progress: Meter
    ) -> None:
        """Write up to `room` tokens for each prompt of a batch."""
        # The prompt of each row that is not finished.
        numbers: list[int | None] = list(batch)
        before: Callable[[], list[list[int]]] | None = None
        for step in range(1, room + 1):
            if step == room or step % LOOK_EVERY == 0:
                # A GPU goes on writing while the host looks at what it had written before.
                looked = before if rows.is_ahead and step < room else rows.written(step)
                if looked is not None:
                    self._look(looked(), numbers, answers, progress, last=step == room)
                    stay = [row for row, number in enumerate(numbers) if number is not None]
                    if not stay:
                        return
                    if rows.keep(stay):
                        numbers = [numbers[row] for row in stay]
                before = rows.written(step) if rows.is_ahead else None
            rows.step()

    def _look(
        self,
        written: Sequence[list[int]],
        numbers: list[int | None],
        answers: list[str],
        progress: Meter,
        *,
        last: bool,
    ) -> None:
        """Note the answers so far; rows that are finished, or write no more, lose their number."""
        for row, number in enumerate(numbers):
            if number is None:
                continue
            answers[number], finished = self._answer(number, written[row])
            if finished or last:
                numbers[row] = None
                progress.advance()

    def _answer(self, number: int, ids: list[int]) -> tuple[str, bool]:
        """The text of a row, and whether it needs no more tokens."""
        end = next((at for at, token in enumerate(ids) if token in self._stops), len(ids))
        (text,) = self._tokenizer.batch_decode([ids[:end]], skip_special_tokens=True)
        finished = end < len(ids) or (self._enough is not None and self._enough(number, text))
        return text, finished
