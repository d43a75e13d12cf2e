"""Rows that are read together, and then get one token after another.

A token of a small model is hundreds of kernels of a few microseconds each: the host takes longer to
launch them than the GPU to run them. Keys and values therefore lie in tensors of fixed size. On a
GPU the launches of one token are recorded once, as a CUDA graph, and replayed for all others, and
for all batches that have room in the same rows.

Prompts are padded at the *end* while they are read. Under a causal mask no token sees the padding
after it, so no mask is needed and attention uses its fast kernels. (A mask for padding at the front
would have rows x tokens^2 entries.) Afterwards each row goes on at its own position, where its next
key takes the place of padding. Rotary positions equal those of a row alone.

Shapes: b rows, t tokens, s slots for keys, n tokens of an answer, h heads, g heads that share keys,
d head size.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from src.evals.losses import SplitModel
from src.evals.seconds import SECONDS
from src.evals.slots import CACHED, GROUPED, Slots, attending, flash_takes, kernel_takes, key_counts
from src.models.shapes import attention_sizes, attention_windows, frequency_class
from src.passes.graphs import memory_is_short

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attention kernels need masks of aligned rows; others are copied for each layer.
_SLOTS_MULTIPLE = 64
# cuDNN plans attention for each shape that it meets, and Triton compiles kernels for multiples of
# 16. So prompts are padded to few lengths.
_READ_MULTIPLE = 128


class Rows:
    """Room for prompts and the tokens that follow them.

    Args:
        model: a causal language model in evaluation mode.
        size: rows, and the most tokens of prompt and answer.
        room: the most tokens of an answer.
        fused: whether the model's layers are fused (src/passes/fused.py).
    """

    def __init__(
        self, model: PreTrainedModel, size: tuple[int, int], room: int, *, fused: bool = False
    ) -> None:
        rows, tokens = size
        self._model = model
        self._device = next(model.parameters()).device
        self._on_gpu = self._device.type == "cuda"
        self._windows = attention_windows(model.config)
        self._kinds = getattr(model.config, "layer_types", None)
        self._by_counts = flash_takes(model)
        self._attention = CACHED if fused and self._by_counts and kernel_takes(model) else GROUPED
        turns_as_it_grows = frequency_class(model.config, sys.maxsize) != 0
        self._multiple = _READ_MULTIPLE if fused and not turns_as_it_grows else 1
        self._graph: torch.cuda.CUDAGraph | None = None
        self._records = _has_graphs(self._device)
        if self._records and turns_as_it_grows:
            self._launch_one_by_one("its RoPE is computed anew, on the host, as a text grows")
        self._slots = _up(tokens, max(_SLOTS_MULTIPLE, self._multiple))
        # The token that each row reads next, its position, and whether the row goes on (1) or not.
        self._token_b1, self._at_b1, self._goes_on_b1 = (
            torch.zeros(rows, 1, dtype=torch.long, device=self._device) for _ in range(3)
        )
        # All layers keep all keys; the masks hold the windows.
        self._layers = [
            Slots((rows, self._slots), self._at_b1) for _ in range(model.config.num_hidden_layers)
        ]
        if self._by_counts:
            # All before anything else, so that they do not lie between activations.
            _, heads, head_size = attention_sizes(model.config)
            like = self._at_b1.new_empty(rows, heads, 0, head_size, dtype=model.dtype)
            for layer in self._layers:
                layer.lazy_initialization(like, like)
        self._column_1 = self._at_b1.new_ones(1)
        # The answers' tokens; columns beyond the present step are not set.
        self.written_bn = self._at_b1.new_zeros(rows, room)

    def __len__(self) -> int:
        return len(self.written_bn)

    @property
    def is_ahead(self) -> bool:
        """Whether `step` returns before its tokens are written."""
        return self._on_gpu

    @property
    def held(self) -> int:
        """Bytes of keys and values."""
        made = [layer for layer in self._layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in made)

    def fits(self, rows: int, tokens: int, room: int) -> bool:
        """Whether other prompts can take these rows without being slower for it.

        A mask makes every row as slow as the longest there could be.
        """
        return self._by_counts and (
            rows <= len(self) and tokens <= self._slots and room <= self.written_bn.shape[1]
        )

    def read(self, prompts: Sequence[Sequence[int]], read_at_once: int) -> None:
        """Read prompts in place of those before, and write the first token of each.

        Args:
            prompts: token ids, all of one `frequency_class`.
            read_at_once: rows of a forward pass.
        """
        taken = len(prompts)
        for held in (self._token_b1, self._at_b1, self._goes_on_b1):
            held.zero_()
        self._column_1.fill_(1)
        self._at_b1[:taken, 0] = torch.tensor([len(row) for row in prompts], device=self._device)
        self._goes_on_b1[:taken] = 1
        for start in range(0, taken, read_at_once):
            some = prompts[start : start + read_at_once]
            self._token_b1[start : start + len(some)] = self._read(some, start)
        self.written_bn[:, :1] = self._token_b1
        if self._on_gpu:
            # So that the time of reading is not counted as that of writing.
            torch.cuda.synchronize(self._device)

    def _read(self, prompts: Sequence[Sequence[int]], start: int) -> Tensor:
        """Read some prompts into the slots of the rows from `start`: their first tokens [b, 1]."""
        longest = _up(max(len(row) for row in prompts), self._multiple)
        # From pinned memory, so that the host need not wait for the prompts before.
        ids_bt = torch.zeros(len(prompts), longest, dtype=torch.long, pin_memory=self._on_gpu)
        for ids_t, row in zip(ids_bt, prompts, strict=True):
            ids_t[: len(row)] = torch.from_numpy(np.asarray(row))
        split = SplitModel.of(self._model)
        for layer in self._layers:
            layer.first_read = start
        hidden_bth = split.decoder(
            input_ids=ids_bt.to(self._device, non_blocking=True),
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        ).last_hidden_state
        for layer in self._layers:
            layer.first_read = None
        last_b = self._at_b1[start : start + len(prompts), 0] - 1
        ends_bh = hidden_bth[torch.arange(len(prompts), device=self._device), last_b]
        return split.logits(ends_bh).argmax(-1)[:, None]

    def step(self) -> None:
        """Write the next token of every row."""
        if self._graph is not None:
            self._graph.replay()
            return
        with attending(self._model, self._attention):
            # The first token sets libraries up, which cannot be recorded.
            self._step()
            if self._records:
                with SECONDS.of("recording tokens"):
                    self._record()

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
        except RuntimeError as error:
            if memory_is_short(error):
                # Not a step that cannot be recorded: launched one by one it needs as much.
                raise
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
            attention_mask=self._seen(),
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        ).logits
        self._token_b1.copy_(logits[:, -1:].argmax(-1))
        self.written_bn.index_copy_(1, self._column_1, self._token_b1)
        self._at_b1.add_(self._goes_on_b1)
        self._column_1.add_(1)

    def _seen(self) -> Any:
        """Which keys each row's token sees: counts, or masks [b, 1, 1, s]; by kind if needed.

        Slots that are still empty have later positions, so masks hide them too.
        """
        alike = self._kinds is None or len(set(self._kinds)) == 1
        if self._by_counts:
            counts = key_counts(self._at_b1, self._layers[0].keys.shape[1], self._slots)
            return counts if alike else dict.fromkeys(self._kinds or (), counts)
        positions_s = torch.arange(self._slots, device=self._device)

        def mask(window: int | None) -> Tensor:
            seen_bs = positions_s <= self._at_b1
            if window is not None:
                seen_bs = seen_bs & (self._at_b1 - positions_s < window)
            hidden = torch.zeros(seen_bs.shape, dtype=self._model.dtype, device=self._device)
            hidden.masked_fill_(~seen_bs, torch.finfo(self._model.dtype).min)
            return hidden[:, None, None, :]

        if alike:
            return mask(self._windows[0])
        windows = dict(zip(self._kinds or (), self._windows, strict=True))
        return {kind: mask(window) for kind, window in windows.items()}

    def written(self, tokens: int) -> Callable[[], list[list[int]]]:
        """The first tokens of all answers as they are now; the call that is returned waits."""
        now_bn = self.written_bn[:, :tokens]
        if not self._on_gpu:
            return now_bn.clone().tolist
        host_bn = torch.empty(now_bn.shape, dtype=now_bn.dtype, pin_memory=True)
        host_bn.copy_(now_bn, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> list[list[int]]:
            copied.synchronize()
            return host_bn.tolist()

        return wait

    def keep(self, rows: Sequence[int]) -> bool:
        """Finish all other rows; returns whether rows have new numbers, those in `rows`.

        A graph would have to be recorded anew, which pays only if at most half of the rows stay.
        Where finished rows cost nothing they stay too.
        """
        if self._by_counts:
            goes_on_b1 = torch.zeros(len(self), 1, dtype=torch.long, pin_memory=self._on_gpu)
            goes_on_b1[list(rows)] = 1
            # Without waiting for the tokens that are being written.
            self._goes_on_b1.copy_(goes_on_b1, non_blocking=True)
            self._at_b1.mul_(self._goes_on_b1)
            return False
        if len(rows) > (len(self) // 2 if self._graph is not None else len(self) - 1):
            return False
        chosen = torch.tensor(rows, device=self._device)
        self._graph = None
        for name in ("_at_b1", "_token_b1", "_goes_on_b1", "written_bn"):
            setattr(self, name, getattr(self, name)[chosen])
        for layer in self._layers:
            # In place: a second copy of all keys and values may not fit.
            for name in ("keys", "values"):
                held = getattr(layer, name)
                held[: len(rows)] = held[chosen]
                setattr(layer, name, held[: len(rows)])
            layer.at_b1 = self._at_b1
        return True


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"
