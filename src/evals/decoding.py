"""Rows that are read together, and then get one token after another.

A token of a small model is hundreds of kernels of a few microseconds each: the host takes longer to
launch them than the GPU to run them. Keys and values therefore lie in tensors of fixed size. On a
GPU the launches of one token are recorded once, as a CUDA graph, and replayed for all others.

Prompts are padded at the *end* while they are read. Under a causal mask no token sees the padding
after it, so no mask is needed and attention uses its fast kernels. (A mask for padding at the front
would have rows x tokens^2 entries.) Afterwards each row goes on at its own position, and its
padding is masked as a key. Rotary positions equal those of a row alone.

Shapes: b rows, t tokens, s slots for keys, n tokens of an answer, h heads, g heads that share keys,
d head size.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from src.evals.losses import SplitModel
from src.models.shapes import attention_windows, frequency_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attention kernels need masks of aligned rows; others are copied for each layer.
_SLOTS_MULTIPLE = 64
_GROUPED = "grouped_sdpa"


def _grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one token, [b, 1, h, d]: heads that share keys are rows of one product.

    transformers repeats keys and values for each head where there is a mask.
    """
    del module
    rows, heads = query.shape[:2]
    query_bhgd = query.reshape(rows, key.shape[1], -1, query.shape[-1])
    mixed_bhgd = torch.nn.functional.scaled_dot_product_attention(
        query_bhgd, key, value, attn_mask=attention_mask, scale=scaling
    )
    return mixed_bhgd.reshape(rows, 1, heads, -1), None


AttentionInterface.register(_GROUPED, _grouped_attention)


class _Slots(DynamicLayer):
    """A layer's keys and values, [b, h, s, d]; each token fills the slot that `slot_1` names.

    Args:
        like: a layer with the same heads.
        size: b and s.
        slot_1: the slot.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, like: DynamicLayer, size: tuple[int, int], slot_1: Tensor) -> None:
        super().__init__()
        rows, slots = size
        self.keys, self.values = (
            kept.new_zeros(rows, kept.shape[1], slots, kept.shape[3])
            for kept in (like.keys, like.values)
            if kept is not None
        )
        self._slot_1 = slot_1
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Fill a slot; returns all of them."""
        del args, kwargs
        self.keys.index_copy_(2, self._slot_1, key_states)
        self.values.index_copy_(2, self._slot_1, value_states)
        return self.keys, self.values


class Rows:
    """Prompts that have been read, and the tokens that follow them.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids, all of one `frequency_class`.
        room: tokens of an answer.
        read_at_once: rows of a forward pass over prompts.

    Attributes:
        written_bn: the answers' tokens; columns beyond the present step are not set.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[list[int]], room: int, read_at_once: int
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._windows = attention_windows(model.config)
        self._kinds = getattr(model.config, "layer_types", None)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._records = _has_graphs(self._device)
        if self._records and frequency_class(model.config, sys.maxsize) != 0:
            self._launch_one_by_one("its RoPE is computed anew, on the host, as a text grows")
        lengths_b = torch.tensor([len(row) for row in prompts], device=self._device)
        longest = max(len(row) for row in prompts)
        slots = -(-(longest + room) // _SLOTS_MULTIPLE) * _SLOTS_MULTIPLE
        self._slot_1 = torch.tensor([longest], device=self._device)
        self._column_1 = torch.tensor([1], device=self._device)
        self._at_b1 = lengths_b[:, None].clone()
        # The position that each slot has in its row: padding has one that no query reaches.
        positions_bs = torch.arange(slots, device=self._device).expand(len(prompts), -1)
        padded_b1 = longest - lengths_b[:, None]
        hidden_bs = (positions_bs >= lengths_b[:, None]) & (positions_bs < longest)
        self._positions_bs = torch.where(
            positions_bs < longest, positions_bs, positions_bs - padded_b1
        ).masked_fill(hidden_bs, torch.iinfo(torch.long).max)
        self._layers: list[_Slots] = []
        self._token_b1 = torch.cat(
            [
                self._read(prompts[start : start + read_at_once], start, (len(prompts), slots))
                for start in range(0, len(prompts), read_at_once)
            ]
        )
        self._cache = Cache(layers=list(self._layers))
        self.written_bn = self._token_b1.new_zeros(len(prompts), room)
        self.written_bn[:, :1] = self._token_b1

    def __len__(self) -> int:
        return len(self.written_bn)

    def _read(self, prompts: Sequence[list[int]], start: int, size: tuple[int, int]) -> Tensor:
        """Read some prompts into the slots of the rows from `start`: their first tokens [b, 1]."""
        longest = max(len(row) for row in prompts)
        ids_bt = torch.tensor([row + [0] * (longest - len(row)) for row in prompts])
        # Without a config the cache keeps all keys of every layer; the masks hold the windows.
        cache = DynamicCache()
        split = SplitModel.of(self._model)
        hidden_bth = split.decoder(
            input_ids=ids_bt.to(self._device), past_key_values=cache, use_cache=True
        ).last_hidden_state
        layers: list[Any] = cache.layers
        if not self._layers:
            self._layers = [_Slots(layer, size, self._slot_1) for layer in layers]
        for kept, layer in zip(self._layers, layers, strict=True):
            kept.keys[start : start + len(prompts), :, :longest] = layer.keys
            kept.values[start : start + len(prompts), :, :longest] = layer.values
        last_b = torch.tensor([len(row) - 1 for row in prompts], device=self._device)
        ends_bh = hidden_bth[torch.arange(len(prompts), device=self._device), last_b]
        return split.logits(ends_bh).argmax(-1)[:, None]

    def step(self) -> None:
        """Write the next token of every row."""
        if self._graph is not None:
            self._graph.replay()
            return
        with _grouped(self._model):
            # The first token sets libraries up, which cannot be recorded.
            self._step()
            if self._records:
                self._record()

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
        except RuntimeError as error:
            self._launch_one_by_one(str(error))
        else:
            self._graph = graph

    def _launch_one_by_one(self, reason: str) -> None:
        self._records = False
        warnings.warn(
            f"{self._model.config.model_type}: tokens of answers are launched kernel by kernel, "
            f"not replayed from a CUDA graph: {reason}",
            stacklevel=2,
        )

    def _step(self) -> None:
        logits = self._model(
            input_ids=self._token_b1,
            position_ids=self._at_b1,
            attention_mask=self._masks(),
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self._token_b1.copy_(logits[:, -1:].argmax(-1))
        self.written_bn.index_copy_(1, self._column_1, self._token_b1)
        for counter in (self._at_b1, self._slot_1, self._column_1):
            counter.add_(1)

    def _masks(self) -> Any:
        """Added to the scores of each row's token, [b, 1, 1, s]; by kind of layer if needed.

        Slots that are still empty have later positions, so they are hidden too.
        """

        def mask(window: int | None) -> Tensor:
            seen_bs = self._positions_bs <= self._at_b1
            if window is not None:
                seen_bs = seen_bs & (self._at_b1 - self._positions_bs < window)
            hidden = torch.zeros(seen_bs.shape, dtype=self._model.dtype, device=self._device)
            hidden.masked_fill_(~seen_bs, torch.finfo(self._model.dtype).min)
            return hidden[:, None, None, :]

        if self._kinds is None or len(set(self._kinds)) == 1:
            return mask(self._windows[0])
        windows = dict(zip(self._kinds, self._windows, strict=True))
        return {kind: mask(window) for kind, window in windows.items()}

    def keep(self, rows: Sequence[int]) -> bool:
        """Drop all other rows; returns whether it did so.

        A graph would have to be recorded anew, which pays only if at most half of the rows stay.
        """
        if len(rows) > (len(self) // 2 if self._graph is not None else len(self) - 1):
            return False
        chosen = torch.tensor(rows, device=self._device)
        self._graph = None
        for layer in self._layers:
            # In place: a second copy of all keys and values may not fit.
            for name in ("keys", "values"):
                held = getattr(layer, name)
                held[: len(rows)] = held[chosen]
                setattr(layer, name, held[: len(rows)])
        for name in ("_positions_bs", "_at_b1", "_token_b1", "written_bn"):
            setattr(self, name, getattr(self, name)[chosen])
        return True


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


@contextmanager
def _grouped(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, one token's attention does not repeat keys and values for each head."""
    usual = model.config._attn_implementation
    if usual == "sdpa":
        model.config._attn_implementation = _GROUPED
    try:
        yield
    finally:
        model.config._attn_implementation = usual
