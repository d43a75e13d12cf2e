"""Greedy answers to many long prompts, in batches.

Prompts of a batch are padded at the *end* while they are read. Under a causal mask no token sees
the padding after it, so no mask is needed and attention uses its fast kernels. (A mask for padding
at the front would have rows x tokens^2 entries.) Afterwards each row goes on at its own position,
and its padding is masked as a key. Rotary positions equal those of a row alone.

Shapes: b rows, t tokens, s keys kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from src.evals.scoring import SplitModel
from src.evals.suite import EvaluationError
from src.models.shapes import attention_windows, frequency_class, shape_of
from src.progress import Meter, meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.cache_utils import DynamicCache

# Steps between two checks for finished rows; a check waits for the device.
LOOK_EVERY = 8
# The share of a device's free memory that a batch may take.
MEMORY_SHARE = 0.6
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


def batch_rows(model: PreTrainedModel, tokens: int, batch_tokens: int | Literal["auto"]) -> int:
    """The number of rows with so many tokens in one batch; at least one.

    `auto` divides a GPU's free memory by the memory of a row's cache and a layer's activations.
    """
    device = next(model.parameters()).device
    if batch_tokens != "auto":
        return max(1, batch_tokens // tokens)
    if device.type != "cuda":
        return max(1, CPU_BATCH_TOKENS // tokens)
    shape = shape_of(model.config)
    size = next(model.parameters()).element_size()
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim
    # Two of the largest layer's keys and values, repeated for all heads, while a token is made,
    # and the residual, query, key, value and MLP tensors while the prompt is read.
    layer = 4 * shape.heads * shape.head_dim + 4 * shape.hidden + 4 * shape.intermediate
    free, _ = torch.cuda.mem_get_info(device)
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(MEMORY_SHARE * (free + reusable)) // (size * (cache + layer) * tokens))


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: Sequence[int],
    *,
    window: int,
    batch_tokens: int | Literal["auto"] = "auto",
    enough: Callable[[int, str], bool] | None = None,
    name: str = "generating",
) -> list[str]:
    """Greedy continuations, without special tokens, in the order of the prompts.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: the model's.
        prompts: texts; none is cut.
        max_new_tokens: by prompt.
        window: positions that the model has.
        batch_tokens: prompt tokens of one batch, or `auto`.
        enough: gets a prompt's number and its answer so far, and says whether the answer may stop.
            It is called now and then, so an answer may be longer than needed.
        name: for the progress meter.

    Raises:
        GenerationError: as `encode` does.
    """
    encoded = encode(tokenizer, prompts, window=window, room=max_new_tokens)
    with meter(name, len(prompts)) as progress:
        return continued(
            model,
            tokenizer,
            encoded,
            max_new_tokens,
            batch_tokens=batch_tokens,
            enough=enough,
            progress=progress,
        )


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    max_new_tokens: Sequence[int],
    *,
    batch_tokens: int | Literal["auto"],
    enough: Callable[[int, str], bool] | None,
    progress: Meter,
) -> list[str]:
    """`generate` for token ids that fit the window."""
    answers = [""] * len(encoded)
    kinds = [
        (new, frequency_class(model.config, len(ids), room=new))
        for ids, new in zip(encoded, max_new_tokens, strict=True)
    ]
    # Prompts of similar length share a batch, so that little is padded.
    order = sorted(range(len(encoded)), key=lambda i: (max_new_tokens[i], len(encoded[i])))
    while order:
        room = max_new_tokens[order[-1]]
        rows = batch_rows(model, len(encoded[order[-1]]) + room, batch_tokens)
        batch, order = order[-rows:], order[:-rows]
        # Rows that generate fewer tokens, or are turned otherwise, wait for another batch.
        kind = kinds[batch[-1]]
        order += [i for i in batch if kinds[i] != kind]
        batch = [i for i in batch if kinds[i] == kind]
        order.sort(key=lambda i: (max_new_tokens[i], len(encoded[i])))
        _Batch(model, tokenizer, {i: encoded[i] for i in batch}, room, enough).run(
            answers, progress
        )
    return answers


class _Batch:
    """Rows that are read together and answered together."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: dict[int, list[int]],
        room: int,
        enough: Callable[[int, str], bool] | None,
    ) -> None:
        self._model, self._tokenizer, self._enough = model, tokenizer, enough
        self._prompts, self._room = prompts, room
        self._device = next(model.parameters()).device
        self._windows = attention_windows(model.config)
        self._kinds = getattr(model.config, "layer_types", None)
        self._eager = str(model.config._attn_implementation).endswith("eager")
        stops = model.generation_config.eos_token_id if model.generation_config else None
        ids = [*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id]
        self._stops = torch.tensor(
            sorted({i for i in ids if i is not None}), dtype=torch.long, device=self._device
        )

    @torch.no_grad()
    def run(self, answers: list[str], progress: Meter) -> None:
        """Answer all rows."""
        names = list(self._prompts)
        cache, lengths_b, next_b = self._read()
        positions_bs = torch.arange(int(lengths_b.max()), device=self._device)
        positions_bs = positions_bs.expand(len(names), -1).clone()
        # Keys without a token of their row get a position that no query reaches.
        positions_bs[positions_bs >= lengths_b[:, None]] = torch.iinfo(torch.long).max
        written_bt = next_b[:, None]
        for step in range(1, self._room + 1):
            last = step == self._room
            if last or step % LOOK_EVERY == 0:
                finished = self._finished(names, written_bt, answers, last)
                progress.advance(sum(finished))
                stay = [row for row, done in enumerate(finished) if not done]
                if not stay:
                    return
                if len(stay) < len(names):
                    kept = torch.tensor(stay, device=self._device)
                    cache.batch_select_indices(kept)
                    positions_bs, lengths_b = positions_bs[kept], lengths_b[kept]
                    written_bt = written_bt[kept]
                    names = [names[row] for row in stay]
            at_b1 = lengths_b[:, None] + step - 1
            positions_bs = torch.cat([positions_bs, at_b1], dim=1)
            logits = self._model(
                input_ids=written_bt[:, -1:],
                position_ids=at_b1,
                attention_mask=self._masks(positions_bs, at_b1),
                past_key_values=cache,
                use_cache=True,
            ).logits
            written_bt = torch.cat([written_bt, logits[:, -1:].argmax(-1)], dim=1)

    def _read(self) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Read the prompts: their cache, their lengths [b], and the first tokens [b]."""
        from transformers import DynamicCache

        rows = list(self._prompts.values())
        lengths_b = torch.tensor([len(row) for row in rows], device=self._device)
        longest = max(len(row) for row in rows)
        ids_bt = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        # Without a config the cache keeps all keys of every layer; the masks hold the windows.
        cache = DynamicCache()
        split = SplitModel.of(self._model)
        hidden_bth = split.decoder(
            input_ids=ids_bt.to(self._device), past_key_values=cache, use_cache=True
        ).last_hidden_state
        ends_bh = hidden_bth[torch.arange(len(rows), device=self._device), lengths_b - 1]
        return cache, lengths_b, split.logits(ends_bh).argmax(-1)

    def _masks(self, keys_bs: torch.Tensor, at_b1: torch.Tensor) -> object:
        """The keys that each row's next token sees, [b, 1, 1, s]; by kind of layer if needed."""

        def mask(window: int | None) -> torch.Tensor:
            seen_bs = keys_bs <= at_b1
            if window is not None:
                seen_bs &= at_b1 - keys_bs < window
            seen = seen_bs[:, None, None, :]
            if not self._eager:
                return seen
            # Eager attention adds its mask to the scores.
            hidden = torch.zeros(seen.shape, dtype=self._model.dtype, device=self._device)
            return hidden.masked_fill(~seen, torch.finfo(self._model.dtype).min)

        if self._kinds is None or len(set(self._kinds)) == 1:
            return mask(self._windows[0])
        return {kind: mask(w) for kind, w in zip(self._kinds, self._windows, strict=True)}

    def _finished(
        self, names: list[int], written_bt: torch.Tensor, answers: list[str], last: bool
    ) -> list[bool]:
        """The rows that need no more tokens; keeps their answers."""
        finished = []
        ended_bt = torch.isin(written_bt, self._stops).tolist()
        for name, ids, ended in zip(names, written_bt.tolist(), ended_bt, strict=True):
            if stopped := True in ended:
                ids = ids[: ended.index(True)]
            (answers[name],) = self._tokenizer.batch_decode([ids], skip_special_tokens=True)
            enough = self._enough is not None and self._enough(name, answers[name])
            finished.append(last or stopped or enough)
        return finished
