"""Attention of one token over the keys of a cache, split into parts (flash decoding).

Each row's keys are read once, by several programs: `_attend_part` gives the attention over a part
of them and the logarithm of its weight, `_join_parts` their weighted mean. A tile of queries has 16
heads, those that share the keys; flash attention's has 64 or 128, so that its products and not the
memory limit it here. (Flash decoding: Dao et al., pytorch.org/blog/flash-decoding, 2023.)

Shapes: r rows (sequences x heads of keys), n query heads that share keys, s slots, d head size,
p parts.
"""

# Kernels are typed for their compiler, not for a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# The fewest rows that a matrix product of a tensor core has.
MOST_HEADS = 16
_PART_KEYS = 1024
_TILE_KEYS = 64
_EVERYTHING = 2**30


def supports(heads: int, size: int) -> bool:
    """Whether so many query heads may share keys of this head size."""
    return heads <= MOST_HEADS and size in (16, 32, 64, 128, 256)


def cached_attention(
    query_rnd: Tensor,
    key_rsd: Tensor,
    value_rsd: Tensor,
    keys_r: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of each row's query heads over its first `keys_r` keys, [r, n, d].

    Args:
        query_rnd, key_rsd, value_rsd: contiguous, of one number format, on one device.
        keys_r: int32; at least 1 for every row.
        scale: of the scores; None for 1 / sqrt(d).
        window: the most keys that a query sees, the latest ones; None for all.
    """
    rows, heads, size = query_rnd.shape
    slots = key_rsd.shape[1]
    parts = triton.cdiv(slots, _PART_KEYS)
    mixed_rpnd = query_rnd.new_empty(rows, parts, heads, size, dtype=torch.float32)
    weight_rpn = query_rnd.new_empty(rows, parts, heads, dtype=torch.float32)
    mixed_rnd = torch.empty_like(query_rnd)
    _attend_part[(rows, parts)](
        query_rnd,
        key_rsd,
        value_rsd,
        keys_r,
        mixed_rpnd,
        weight_rpn,
        slots,
        parts,
        _EVERYTHING if window is None else window,
        (size**-0.5 if scale is None else scale) * math.log2(math.e),
        HEADS=heads,
        TILE_HEADS=MOST_HEADS,
        SIZE=size,
        PART=_PART_KEYS,
        TILE=_TILE_KEYS,
        num_warps=4,
        num_stages=3,
    )
    _join_parts[(rows * heads,)](
        mixed_rpnd,
        weight_rpn,
        mixed_rnd,
        parts,
        HEADS=heads,
        SIZE=size,
        PARTS=triton.next_power_of_2(parts),
        num_warps=1,
    )
    return mixed_rnd


@triton.jit
def _attend_part(
    query,
    key,
    value,
    keys,
    mixed,
    weights,
    slots,
    parts,
    window,
    scale,
    HEADS: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PART: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    seen = tl.load(keys + row)
    first = tl.maximum(seen - window, 0)
    start = tl.maximum(part * PART, first // TILE * TILE)
    end = tl.minimum(part * PART + PART, seen)
    heads = tl.arange(0, TILE_HEADS)
    sizes = tl.arange(0, SIZE)
    is_head = heads < HEADS
    place = (row * parts + part) * HEADS + heads
    if end <= tl.maximum(start, first):
        tl.store(weights + place, float("-inf"), mask=is_head)
        return
    query += row * HEADS * SIZE
    key += row * slots * SIZE
    value += row * slots * SIZE
    q = tl.load(query + heads[:, None] * SIZE + sizes, mask=is_head[:, None], other=0.0)
    largest = tl.full([TILE_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_HEADS], tl.float32)
    mix = tl.zeros([TILE_HEADS, SIZE], tl.float32)
    for tile in range(start, end, TILE):
        at = tile + tl.arange(0, TILE)
        is_key = at < end
        k = tl.load(key + at * SIZE + sizes[:, None], mask=is_key, other=0.0)
        # Exact products where the numbers are float32; others are multiplied as they are.
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(is_key & (at >= first), scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        shares = tl.exp2(scores - larger[:, None])
        shrunk = tl.exp2(largest - larger)
        v = tl.load(value + at[:, None] * SIZE + sizes, mask=is_key[:, None], other=0.0)
        total = total * shrunk + tl.sum(shares, 1)
        mix = mix * shrunk[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        largest = larger
    tl.store(weights + place, largest + tl.log2(total), mask=is_head)
    place_of_mix = place[:, None] * SIZE + sizes
    tl.store(mixed + place_of_mix, mix / total[:, None], mask=is_head[:, None])


@triton.jit
def _join_parts(
    mixed,
    weights,
    joined,
    parts,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = row // HEADS * parts * HEADS + row % HEADS
    at = tl.arange(0, PARTS)
    sizes = tl.arange(0, SIZE)
    log = tl.load(weights + first + at * HEADS, mask=at < parts, other=float("-inf"))
    # Of a part without keys nothing was written.
    is_part = log > float("-inf")
    share = tl.exp2(log - tl.max(log, 0))
    place = (first + at[:, None] * HEADS) * SIZE + sizes
    mix = tl.load(mixed + place, mask=is_part[:, None], other=0.0)
    mean = tl.sum(mix * (share / tl.sum(share, 0))[:, None], 0)
    tl.store(joined + row * SIZE + sizes, mean.to(joined.dtype.element_ty))
