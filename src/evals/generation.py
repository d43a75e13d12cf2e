"""Greedy answers to many long prompts, in batches.

Which prompts share a batch, when an answer ends, and what is kept of it. `decoding` runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from src.evals.seconds import SECONDS
from src.evals.suite import EvaluationError
from src.models.shapes import attention_sizes, frequency_class
from src.passes.fused import fused as fused_layers
from src.progress import Meter

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


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, window: int, room: Sequence[int]
) -> list[list[int]]:
    """Token ids of prompts, which are never cut.

    `window` is the number of positions that the model has, `room` that of tokens to generate for
    each prompt.

    Raises:
        EvaluationError: a prompt and what follows do not fit the window; a prompt with two
            beginning-of-text tokens; a tokenizer that ends prompts with an end-of-text token.
    """
    encoded: list[list[int]] = tokenizer(list(prompts), verbose=False)["input_ids"]
    specials: tuple[Any, Any] = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begin, end = specials
    for ids, new in zip(encoded, room, strict=True):
        if len(ids) + new > window:
            raise EvaluationError(
                f"a prompt of {len(ids)} tokens and {new} to generate are longer than the model's "
                f"window of {window}: choose shorter lengths, or a model scaled to more"
            )
        # Some tokenizers use one token for both.
        if begin is not None and ids.count(begin) > 1:
            raise EvaluationError(
                f"a prompt has {ids.count(begin)} beginning-of-text tokens: it must not contain "
                f"{tokenizer.bos_token!r} itself"
            )
        if end is not None and ids[-1] == end:
            raise EvaluationError(
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
    return max(1, int((budget - read * layer) / kept)), read


@dataclass
class KeptRows:
    """The latest rows of a model, for the next batch: what was recorded for them stays valid."""

    rows: Rows | None = None


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    *,
    progress: Meter,
    batch_tokens: int | Literal["auto"] = "auto",
    enough: Callable[[int, str], bool] | None = None,
    kept: KeptRows | None = None,
    fused: bool = False,
) -> list[str]:
    """Greedy continuations, without special tokens, in the order of the prompts.

    Args:
        model, tokenizer: a causal language model in evaluation mode, and its tokenizer.
        encoded, max_new_tokens: prompts as `encode` makes them, and tokens to generate for each.
        progress: advances with every answer.
        batch_tokens: prompt tokens of one batch, or `auto`.
        enough: gets a prompt's number and its answer so far, and says whether the answer may stop.
            It is called now and then, so an answer may be longer than needed.
        kept: rows of earlier calls for the same model and `fused`; they are used again where they
            fit.
        fused: let fused kernels compute norms, RoPE, gated activations and the attention of new
            tokens. The model's family must have LLaMA's formulas (`Family.llama_operators`).
    """
    kinds = [
        (new, frequency_class(model.config, len(ids), room=new))
        for ids, new in zip(encoded, max_new_tokens, strict=True)
    ]
    writer = _Writer(model, tokenizer, batch_tokens, enough, progress, kept or KeptRows(), fused)
    # Prompts of similar length share a batch, so that little is padded.
    order = sorted(range(len(encoded)), key=lambda i: (max_new_tokens[i], len(encoded[i])))
    with fused_layers(model.get_decoder()) if fused else nullcontext():
        while order:
            # Rows that generate fewer tokens, or are turned otherwise, wait for another batch.
            alike = [i for i in order if kinds[i] == kinds[order[-1]]]
            writer.answer({number: encoded[number] for number in alike}, max_new_tokens[alike[-1]])
            order = [number for number in order if number not in writer.answers]
    return [writer.answers[number] for number in range(len(encoded))]


@dataclass
class _Writer:
    """Answers prompts, batch by batch; `answers` are by their numbers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_tokens: int | Literal["auto"]
    enough: Callable[[int, str], bool] | None
    progress: Meter
    kept: KeptRows
    fused: bool
    answers: dict[int, str] = field(default_factory=dict)

    @cached_property
    def stops(self) -> set[int]:
        """The tokens that end an answer."""
        stops: Any = self.model.generation_config and self.model.generation_config.eos_token_id
        end: Any = self.tokenizer.eos_token_id
        return {end, *(stops if isinstance(stops, list) else [stops])}

    @torch.no_grad()
    def answer(self, prompts: Mapping[int, Sequence[int]], room: int) -> None:
        """Answer the last of these prompts, as many as have room in a batch."""
        with SECONDS.of("reading prompts"):
            rows, number, read_at_once = self._rows([len(ids) for ids in prompts.values()], room)
            batch = list(prompts)[-number:]
            rows.read([prompts[i] for i in batch], read_at_once)
        with SECONDS.of("writing answers"):
            self._write(rows, batch, room)

    def _rows(self, lengths: Sequence[int], room: int) -> tuple[Rows, int, int]:
        """Rows for the last of these prompts, their number, and how many are read at once."""
        from src.evals.decoding import Rows

        kept, tokens = self.kept, lengths[-1] + room
        held = 0 if kept.rows is None else kept.rows.held
        number, read_at_once = batch_rows(self.model, tokens, self.batch_tokens, held)
        number = min(number, len(lengths))
        if kept.rows is None or not kept.rows.fits(number, tokens, room):
            # Their memory goes before new ones take theirs.
            kept.rows = None
            kept.rows = Rows(self.model, (number, tokens), room, fused=self.fused)
        return kept.rows, number, read_at_once

    def _write(self, rows: Rows, batch: Sequence[int], room: int) -> None:
        """Write up to `room` tokens for each prompt of a batch."""
        # The prompt of each row that is not finished.
        numbers: list[int | None] = list(batch)
        before: Callable[[], list[list[int]]] | None = None
        for step in range(1, room + 1):
            if step == room or step % LOOK_EVERY == 0:
                # A GPU goes on writing while the host looks at what it had written before.
                looked = before if rows.is_ahead and step < room else rows.written(step)
                if looked is not None:
                    self._look(looked(), numbers, last=step == room)
                    stay = [row for row, number in enumerate(numbers) if number is not None]
                    if not stay:
                        return
                    if rows.keep(stay):
                        numbers = [numbers[row] for row in stay]
                before = rows.written(step) if rows.is_ahead else None
            rows.step()

    def _look(self, written: Sequence[list[int]], numbers: list[int | None], *, last: bool) -> None:
        """Note the answers so far; rows that are finished, or write no more, lose their number."""
        for row, number in enumerate(numbers):
            if number is None:
                continue
            ids = written[row]
            end = next((at for at, token in enumerate(ids) if token in self.stops), len(ids))
            (text,) = self.tokenizer.batch_decode([ids[:end]], skip_special_tokens=True)
            self.answers[number] = text
            if last or end < len(ids) or (self.enough and self.enough(number, text)):
                numbers[row] = None
                self.progress.advance()
