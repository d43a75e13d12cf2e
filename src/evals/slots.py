"""Keys and values of fixed size, and the attention of one token to them.

On a GPU in half precision, attention is told how many keys each row has and reads no others: short
and finished rows cost next to nothing. That is flash attention, or with fused kernels a kernel for
one token (kernels/cached_attention.py). Elsewhere a mask hides the other keys.

Shapes: b rows, t tokens, s slots for keys, h heads, g heads that share keys, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer

from src.models.shapes import attention_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of one attention: by counts it is flash attention, or the kernel for one token.
GROUPED, CACHED = "grouped_sdpa", "cached_attention"


def _one_tokens_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one token, [b, 1, h, d]: heads that share keys are rows of one product.

    transformers repeats keys and values for each head where there is a mask. `query` is
    [b, h, 1, d], `key` and `value` are [b, g, s, d]. The mask is added to scores; or, as integers,
    it is what `key_counts` returns, and `sliding_window` then limits the keys that a token sees.
    """
    rows, heads = query.shape[:2]
    query_bghd = query.reshape(rows, key.shape[1], -1, query.shape[-1])
    if attention_mask.dtype == torch.int32:
        config: Any = module.config
        cached = config._attn_implementation == CACHED
        by_counts = _kernel_attention if cached else _flash_attention
        mixed = by_counts(query_bghd, key, value, attention_mask, scaling, sliding_window)
    else:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query_bghd, key, value, attn_mask=attention_mask, scale=scaling
        )
    return mixed.reshape(rows, 1, heads, -1), None


AttentionInterface.register(GROUPED, _one_tokens_attention)
AttentionInterface.register(CACHED, _one_tokens_attention)


def key_counts(at_b1: Tensor, heads: int, slots: int) -> Tensor:
    """What flash attention is told of its keys, int32 [3, b g + 1, 1, 1].

    Keys of each row and head, and where its query and its keys begin. (It has the axes of a mask,
    so that transformers hands it on as one.)
    """
    counts = (at_b1 + 1).expand(-1, heads).flatten()
    starts = torch.arange(len(counts) + 1, device=at_b1.device)
    padded = torch.cat([counts, counts[:1]])
    return torch.stack([padded, starts, starts * slots]).to(torch.int32)[..., None, None]


def _flash_attention(
    query_bghd: Tensor,
    key_bgsd: Tensor,
    value_bgsd: Tensor,
    counts: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Flash attention over sequences of unequal lengths: a sequence is a row's head of keys."""
    slots, size = key_bgsd.shape[2:]
    seen = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    # torch.nn.attention.varlen takes the number of keys in its newer versions only.
    return torch.ops.aten._flash_attention_forward(
        query_bghd.flatten(0, 1),
        key_bgsd.reshape(-1, 1, size),
        value_bgsd.reshape(-1, 1, size),
        counts[1, :, 0, 0],
        counts[2, :, 0, 0],
        1,
        slots,
        0.0,
        False,
        False,
        scale=scale,
        seqused_k=counts[0, :-1, 0, 0],
        **seen,
    )[0]


def _kernel_attention(
    query_bghd: Tensor,
    key_bgsd: Tensor,
    value_bgsd: Tensor,
    counts: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """What `_flash_attention` computes, by a kernel for one token."""
    from kernels.cached_attention import cached_attention

    return cached_attention(
        query_bghd.flatten(0, 1),
        key_bgsd.flatten(0, 1),
        value_bgsd.flatten(0, 1),
        counts[0, :-1, 0, 0],
        scale=scale,
        window=window,
    )


class Slots(DynamicLayer):
    """A layer's keys and values, [b, g, s, d]; each token fills the slot of its position.

    While `first_read` is a number, prompts are read into the rows from it on.
    """

    keys: Tensor
    values: Tensor
    first_read: int | None = None

    def __init__(self, size: tuple[int, int], at_b1: Tensor) -> None:
        """Room for `size`, b and s; `at_b1` are the positions of the next tokens."""
        super().__init__()
        self.size, self.at_b1 = size, at_b1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the slots, for heads like these."""
        rows, slots = self.size
        self.keys, self.values = (
            states.new_zeros(rows, states.shape[1], slots, states.shape[3])
            for states in (key_states, value_states)
        )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Fill the slots of prompts, or one slot of each row; returns what is attended to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        pairs = ((self.keys, key_states), (self.values, value_states))
        if self.first_read is not None:
            rows, _, tokens, _ = key_states.shape
            for kept, new in pairs:
                kept[self.first_read : self.first_read + rows, :, :tokens] = new
            return key_states, value_states
        for kept, new in pairs:
            kept.scatter_(2, self.at_b1[:, None, :, None].expand_as(new), new)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """The tokens before those of a pass: none, since prompts are read from the beginning."""
        return 0


def flash_takes(model: PreTrainedModel) -> bool:
    """Whether flash attention computes a model's, and can be told how many keys each row has."""
    *_, size = attention_sizes(model.config)
    return (
        next(model.parameters()).is_cuda
        and model.dtype in (torch.bfloat16, torch.float16)
        and model.config._attn_implementation == "sdpa"
        and not size % 8
        and size <= 256
    )


def kernel_takes(model: PreTrainedModel) -> bool:
    """Whether the kernel for one token takes a model's heads."""
    from kernels.cached_attention import supports

    heads, kv_heads, size = attention_sizes(model.config)
    return supports(heads // kv_heads, size)


@contextmanager
def attending(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Inside the block, one token's attention does not repeat keys and values for each head."""
    usual = model.config._attn_implementation
    if usual == "sdpa":
        model.config._attn_implementation = attention
    try:
        yield
    finally:
        model.config._attn_implementation = usual
