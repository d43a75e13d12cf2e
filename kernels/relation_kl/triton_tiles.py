"""Parts of the Triton kernels: operands, addresses, masks, ranges of blocks, and one tile's work.

Shapes in comments: M tokens of the program's own block, N tokens of the other block, D a head size
padded to a power of two. Scores are base-2 exponents: products times ``scale * log2(e)``.
"""

# Triton's decorators and constants are typed for its compiler, not for a type checker.
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Replaces minus infinity in hidden scores. It is finite, so that rows that see nothing have no NaN.
HIDDEN = tl.constexpr(-1e30)
LN_2 = tl.constexpr(0.6931471805599453)
# The number of tokens that share one entry of `Masks.reach`.
GRANULE_TOKENS = 64
GRANULE = tl.constexpr(GRANULE_TOKENS)


class Operand(NamedTuple):
    """A tensor ``[batch, heads, tokens, head_dim]`` whose last axis is contiguous."""

    pointer: Any
    batch_stride: Any
    head_stride: Any
    token_stride: Any
    head_dim: Any


class Relation(NamedTuple):
    """One self-relation of a launch; its heads follow those of the relations before it."""

    student: Operand
    teacher: Operand
    gradient: Operand
    student_scale: Any
    teacher_scale: Any
    first_head: Any


class Attention(NamedTuple):
    """Both sides' queries and keys; ``group`` fields are the number of query heads per key head."""

    q_student: Operand
    k_student: Operand
    q_teacher: Operand
    k_teacher: Operand
    gradient: Operand
    student_scale: Any
    teacher_scale: Any
    student_group: Any
    teacher_group: Any


class RowSums(NamedTuple):
    """The forward's results per row, ``[batch, heads, tokens]`` float32: the KL and, for each side,
    the largest score and the sum of ``2^(score - largest)``.

    Both are kept because one number, the log-sum-exp, would have a rounding error larger than the
    difference of two sides that nearly agree.
    """

    kl: Any
    student_peak: Any
    student_sum: Any
    teacher_peak: Any
    teacher_sum: Any


class RowWeights(NamedTuple):
    """The backward's inputs per row, ``[batch, heads, tokens]`` float32: for each side, the largest
    score, and the scaled upstream gradient divided by the sum."""

    student_peak: Any
    student_weight: Any
    teacher_peak: Any
    teacher_weight: Any


class Masks(NamedTuple):
    """The masks besides position; each may be absent (None).

    ``segments`` and ``real`` are ``[batch, tokens]``. ``reach`` is ``[batch, granules, 4]``, two
    ranges of tokens by segments and padding alone, each as first and last + 1: the tokens that any
    token of the granule may see, and the tokens around it that all of its tokens may see. A range
    is empty if its last + 1 does not exceed its first.
    """

    segments: Any
    real: Any
    reach: Any


class Head(NamedTuple):
    """One head of an operand."""

    pointer: Any
    token_stride: Any
    head_dim: Any


class Pair(NamedTuple):
    """A student's and a teacher's head that correspond, or blocks of them."""

    student: Any
    teacher: Any


class Shape(NamedTuple):
    """Compile-time facts: the blocks' sizes, whether heads fill them, how float32 multiplies."""

    causal: Any
    block_m: Any
    block_n: Any
    block_ds: Any
    block_dt: Any
    whole_ds: Any
    whole_dt: Any
    precision: Any


class Tokens(NamedTuple):
    """Positions and masks of a block's tokens."""

    position: Any
    segment: Any
    real: Any


class Totals(NamedTuple):
    """Running sums of M rows; each side is relative to its own running maximum.

    ``gap`` is the sum of ``2^t (t - s)`` over the columns so far, with ``t`` and ``s`` centred on
    the running maxima.
    """

    student_peak: Any
    student_sum: Any
    teacher_peak: Any
    teacher_sum: Any
    gap: Any


class Blocks(NamedTuple):
    """The other blocks to visit, ``[first, stop)``. Those in ``[inner_first, inner_stop)`` need no
    masks. All bounds except ``stop`` are multiples of the block size."""

    first: Any
    inner_first: Any
    inner_stop: Any
    stop: Any


class Neighbours(NamedTuple):
    """The other blocks of a self-relation to visit. Their order: an edge, inner blocks that the own
    tokens see, the diagonal, inner blocks that see the own tokens, an edge. If not causal, the
    first inner blocks do both. All bounds except ``stop`` are multiples of the block size."""

    first: Any
    seen_first: Any
    seen_stop: Any
    seers_first: Any
    seers_stop: Any
    stop: Any


@triton.jit
def locate(program, heads, blocks, together):
    """A program's head (over all batch elements) and the rank of its block in that head.

    ``together`` heads share the cache, so all their blocks come before those of the next heads.
    Among these heads, all first-ranked blocks come first.
    """
    group = program // (together * blocks)
    within = program % (together * blocks)
    count = tl.minimum(together, heads - group * together)
    return group * together + within % count, within // count


@triton.jit
def _choose_operand(condition, x, y):
    return Operand(
        tl.where(condition, x.pointer, y.pointer),
        tl.where(condition, x.batch_stride, y.batch_stride),
        tl.where(condition, x.head_stride, y.head_stride),
        tl.where(condition, x.token_stride, y.token_stride),
        tl.where(condition, x.head_dim, y.head_dim),
    )


@triton.jit
def choose_relation(relations, head):
    """The relation that a head belongs to."""
    COUNT: tl.constexpr = len(relations)
    chosen = relations[0]
    for r in tl.static_range(1, COUNT):
        relation = relations[r]
        here = head >= relation.first_head
        chosen = Relation(
            _choose_operand(here, relation.student, chosen.student),
            _choose_operand(here, relation.teacher, chosen.teacher),
            _choose_operand(here, relation.gradient, chosen.gradient),
            tl.where(here, relation.student_scale, chosen.student_scale),
            tl.where(here, relation.teacher_scale, chosen.teacher_scale),
            tl.where(here, relation.first_head, chosen.first_head),
        )
    return chosen


@triton.jit
def at_head(operand, batch, head):
    offset = tl.cast(batch, tl.int64) * operand.batch_stride
    offset += tl.cast(head, tl.int64) * operand.head_stride
    return Head(operand.pointer + offset, operand.token_stride, operand.head_dim)


@triton.jit
def _pointers(x, start, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """``[BLOCK, BLOCK_D]`` addresses; the part that a loop does not change is a separate term."""
    token = tl.cast(tl.arange(0, BLOCK), tl.int64)[:, None] * x.token_stride
    return (
        x.pointer
        + tl.cast(start, tl.int64) * x.token_stride
        + (token + tl.arange(0, BLOCK_D)[None, :])
    )


@triton.jit
def _inside(x, start, tokens, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    token, dim = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    return (token < tokens)[:, None] & (dim < x.head_dim)[None, :]


@triton.jit
def load(x, start, tokens, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr):
    """``[BLOCK, BLOCK_D]`` of a head, 0 outside it; ``WHOLE``: the block lies inside the head."""
    pointers = _pointers(x, start, BLOCK, BLOCK_D)
    if WHOLE:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=_inside(x, start, tokens, BLOCK, BLOCK_D), other=0.0)
    return values


@triton.jit
def load_tokens(masks, batch, start, tokens, BLOCK: tl.constexpr):
    position = start + tl.arange(0, BLOCK)
    inside = position < tokens
    offset = tl.cast(batch, tl.int64) * tokens + position
    segment = tl.zeros([BLOCK], tl.int32)
    real = inside
    if masks.segments is not None:
        segment = tl.load(masks.segments + offset, mask=inside, other=0)
    if masks.real is not None:
        real = tl.load(masks.real + offset, mask=inside, other=0) != 0
    return Tokens(position, segment, real)


@triton.jit
def load_weights(weights, row_head, start, tokens, BLOCK: tl.constexpr):
    """Weights of a block of rows; 0 beyond the last token."""
    position = start + tl.arange(0, BLOCK)
    inside = position < tokens
    offset = tl.cast(row_head, tl.int64) * tokens + position
    return RowWeights(
        tl.load(weights.student_peak + offset, mask=inside, other=0.0),
        tl.load(weights.student_weight + offset, mask=inside, other=0.0),
        tl.load(weights.teacher_peak + offset, mask=inside, other=0.0),
        tl.load(weights.teacher_weight + offset, mask=inside, other=0.0),
    )


@triton.jit
def _reach(masks, batch, start, tokens, BLOCK: tl.constexpr):
    """The tokens that a block may see, or be seen by, apart from positions.

    Two ranges, each as first and last + 1 token: for any of its tokens, and for all of them.
    """
    first, stop, sure_first, sure_stop = 0, tokens, 0, tokens
    if masks.reach is not None:
        COUNT: tl.constexpr = (BLOCK + GRANULE - 1) // GRANULE
        granules = tl.cdiv(tokens, GRANULE)
        granule = start // GRANULE + tl.arange(0, COUNT)
        inside = granule < granules
        entry = masks.reach + 4 * (tl.cast(batch, tl.int64) * granules + granule)
        first = tl.min(tl.load(entry, mask=inside, other=tokens), 0)
        stop = tl.max(tl.load(entry + 1, mask=inside, other=0), 0)
        sure_first = tl.max(tl.load(entry + 2, mask=inside, other=0), 0)
        sure_stop = tl.min(tl.load(entry + 3, mask=inside, other=tokens), 0)
    return first, stop, sure_first, sure_stop


@triton.jit
def _clipped(first, stop, masks, batch, start, tokens, shape):
    """``[first, stop)`` cut to the block's reach, with its start rounded down to a whole block, and
    the range in which segments and padding hide nothing."""
    reach_first, reach_stop, sure_first, sure_stop = _reach(
        masks, batch, start, tokens, shape.block_m
    )
    first = tl.maximum(first, reach_first) // shape.block_n * shape.block_n
    return first, tl.maximum(tl.minimum(stop, reach_stop), first), sure_first, sure_stop


@triton.jit
def _inner(inner_first, inner_stop, first, stop, shape):
    """The whole blocks of ``[first, stop)`` that lie in ``[inner_first, inner_stop)``.

    If there are none, the range is empty, and its bounds still lie in ``[first, stop)``.
    """
    inner_first = tl.cdiv(tl.maximum(inner_first, first), shape.block_n) * shape.block_n
    inner_first = tl.minimum(inner_first, tl.cdiv(stop, shape.block_n) * shape.block_n)
    inner_stop = tl.minimum(inner_stop, stop) // shape.block_n * shape.block_n
    return inner_first, tl.maximum(inner_stop, inner_first)


@triton.jit
def columns_of(masks, batch, start, tokens, window, shape):
    """Blocks of columns that the block of rows from ``start`` may see."""
    first, inner_first, inner_stop, stop = 0, 0, tokens, tokens
    if shape.causal:
        inner_stop, stop = start + 1, tl.minimum(start + shape.block_m, tokens)
    if window is not None:
        first, inner_first = tl.maximum(start - window + 1, 0), start + shape.block_m - window
    first, stop, sure_first, sure_stop = _clipped(first, stop, masks, batch, start, tokens, shape)
    inner_first = tl.maximum(inner_first, sure_first)
    inner_stop = tl.minimum(inner_stop, sure_stop)
    inner_first, inner_stop = _inner(inner_first, inner_stop, first, stop, shape)
    return Blocks(first, inner_first, inner_stop, stop)


@triton.jit
def rows_of(masks, batch, start, tokens, window, shape):
    """Blocks of rows that may see the block of columns from ``start``."""
    first, inner_first, inner_stop, stop = 0, 0, tokens, tokens
    if shape.causal:
        first, inner_first = start, start + shape.block_m - 1
    if window is not None:
        inner_stop = start + window
        stop = tl.minimum(start + shape.block_m - 1 + window, tokens)
    first, stop, sure_first, sure_stop = _clipped(first, stop, masks, batch, start, tokens, shape)
    inner_first = tl.maximum(inner_first, sure_first)
    inner_stop = tl.minimum(inner_stop, sure_stop)
    inner_first, inner_stop = _inner(inner_first, inner_stop, first, stop, shape)
    return Blocks(first, inner_first, inner_stop, stop)


@triton.jit
def neighbours_of(masks, batch, start, tokens, window, shape):
    """Blocks of a self-relation that the block from ``start`` sees or that see it."""
    first, seen_first, seen_stop = 0, 0, tokens
    seers_first, seers_stop, stop = tokens, tokens, tokens
    if shape.causal:
        seen_stop, seers_first = start, start + shape.block_m
    if window is not None:
        first, seen_first = tl.maximum(start - window + 1, 0), start + shape.block_m - window
        seers_stop = start + window
        stop = tl.minimum(start + shape.block_m - 1 + window, tokens)
    first, stop, sure_first, sure_stop = _clipped(first, stop, masks, batch, start, tokens, shape)
    seen_first = tl.maximum(seen_first, sure_first)
    seen_stop = tl.minimum(seen_stop, sure_stop)
    seen_first, seen_stop = _inner(seen_first, seen_stop, first, stop, shape)
    seers_first = tl.maximum(tl.maximum(seers_first, sure_first), seen_stop)
    seers_stop = tl.minimum(seers_stop, sure_stop)
    seers_first, seers_stop = _inner(seers_first, seers_stop, first, stop, shape)
    return Neighbours(first, seen_first, seen_stop, seers_first, seers_stop, stop)


@triton.jit
def seen_by_position(row, column, tokens, window, CAUSAL: tl.constexpr):
    """Whether rows see columns by position. Both broadcast; any value past the last token."""
    seen = column < tokens
    if CAUSAL:
        seen = column <= row
    if window is not None:
        seen = seen & (row - column < window)
    return seen


@triton.jit
def agree(own, other):
    """``[M, N]``: same segment, and both real."""
    same = own.segment[:, None] == other.segment[None, :]
    return same & own.real[:, None] & other.real[None, :]


@triton.jit
def scores(own, other, scale, PRECISION: tl.constexpr):
    return tl.dot(own, tl.trans(other), input_precision=PRECISION) * scale


@triton.jit
def add_columns(totals, s, t):
    """Adds a tile of scores ``[M, N]`` to the rows' running sums.

    When a maximum rises, all sums so far are rescaled, and the gap's terms ``t - s`` move with both
    centres.
    """
    student_peak = tl.maximum(totals.student_peak, tl.max(s, 1))
    teacher_peak = tl.maximum(totals.teacher_peak, tl.max(t, 1))
    student_move = totals.student_peak - student_peak
    teacher_move = totals.teacher_peak - teacher_peak
    student_keep = tl.exp2(student_move)
    teacher_keep = tl.exp2(teacher_move)
    s -= student_peak[:, None]
    t -= teacher_peak[:, None]
    p_teacher = tl.exp2(t)
    moved = totals.gap + totals.teacher_sum * (teacher_move - student_move)
    return Totals(
        student_peak,
        student_keep * totals.student_sum + tl.sum(tl.exp2(s), 1),
        teacher_peak,
        teacher_keep * totals.teacher_sum + tl.sum(p_teacher, 1),
        teacher_keep * moved + tl.sum(p_teacher * (t - s), 1),
    )


@triton.jit
def store(x, values, start, tokens, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes the part of ``[BLOCK, BLOCK_D]`` that lies inside a head."""
    inside = _inside(x, start, tokens, BLOCK, BLOCK_D)
    tl.store(
        _pointers(x, start, BLOCK, BLOCK_D), values.to(x.pointer.dtype.element_ty), mask=inside
    )
