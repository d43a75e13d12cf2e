"""The Triton backend's kernels; `triton.py` launches them, README.md derives them.

A program owns one block of tokens of one head and visits the blocks that can matter to it. The
order depends only on the place of its block, so results have the same bits every time.
"""

# Triton's decorators and constants are typed for its compiler, not for a type checker.
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from .triton_tiles import (
    GRANULE,
    HIDDEN,
    LN_2,
    Pair,
    Totals,
    add_columns,
    agree,
    at_head,
    choose_relation,
    columns_of,
    load,
    load_tokens,
    load_weights,
    locate,
    neighbours_of,
    rows_of,
    scores,
    seen_by_position,
    store,
)

# The largest sum of a row whose peak is not its largest score (`hopper_kernels.forward_kernel`).
LARGEST_SUM = tl.constexpr(2.0**60)
# The most blocks that a program of `self_forward_again_kernel` checks.
MOST_LOOKED_AT = 32
LOOKED_AT = tl.constexpr(MOST_LOOKED_AT)
# The smallest normal number in float32.
TINY = tl.constexpr(2.0**-126)


@triton.jit
def self_forward_kernel(
    relations, masks, results, batches, heads, tokens, window, together, shape: tl.constexpr
):
    """KL and both sides' sums of the rows of all relations."""
    blocks = tl.cdiv(tokens, shape.block_m)
    row_head, rank = locate(tl.program_id(0), batches * heads, blocks, together)
    # The last rows see most columns, so they start first.
    start = (blocks - 1 - rank) * shape.block_m
    _self_forward(relations, masks, results, heads, row_head, start, tokens, window, shape)


@triton.jit
def self_forward_again_kernel(
    relations, masks, results, batches, heads, tokens, window, together, shape: tl.constexpr
):
    """Computes the blocks again that hold an untrusted sum (`hopper.forward`).

    A program checks up to `LOOKED_AT` blocks; the stride is the number of programs. Mostly all sums
    are fine, and launching one program for each block would cost more than the check.
    """
    blocks = tl.cdiv(tokens, shape.block_m)
    jobs = batches * heads * blocks
    looked_at = tl.program_id(0) + tl.arange(0, LOOKED_AT) * tl.num_programs(0)
    heads_of, ranks = locate(looked_at, batches * heads, blocks, together)
    starts = (blocks - 1 - ranks) * shape.block_m
    known = (looked_at < jobs)[:, None]
    if _trusted(results, heads_of[:, None], starts[:, None], known, tokens, shape):
        return
    for job in tl.range(tl.program_id(0), jobs, tl.num_programs(0)):
        row_head, rank = locate(job, batches * heads, blocks, together)
        start = (blocks - 1 - rank) * shape.block_m
        if not _trusted(results, row_head, start, True, tokens, shape):
            _self_forward(relations, masks, results, heads, row_head, start, tokens, window, shape)


@triton.jit
def _trusted(results, row_head, start, known, tokens, shape):
    """Whether all sums in blocks of rows are small enough; true for blocks that do not exist."""
    position = start + tl.arange(0, shape.block_m)
    offset = tl.cast(row_head, tl.int64) * tokens + position
    inside = (position < tokens) & known
    student_sum = tl.load(results.student_sum + offset, mask=inside, other=1.0)
    teacher_sum = tl.load(results.teacher_sum + offset, mask=inside, other=1.0)
    # This comparison is false for NaN, so NaN is not trusted either.
    trusted = (student_sum < LARGEST_SUM) & (teacher_sum < LARGEST_SUM)
    return tl.min(trusted.to(tl.int32)) == 1


@triton.jit
def _self_forward(relations, masks, results, heads, row_head, start, tokens, window, shape):
    batch, head = row_head // heads, row_head % heads
    relation = choose_relation(relations, head)
    head -= relation.first_head
    x = Pair(at_head(relation.student, batch, head), at_head(relation.teacher, batch, head))
    scale = Pair(relation.student_scale, relation.teacher_scale)
    _forward(x, x, scale, masks, results, batch, row_head, start, tokens, window, shape)


@triton.jit
def attention_forward_kernel(
    attention, masks, results, batches, heads, tokens, window, together, shape: tl.constexpr
):
    """KL and both sides' sums of all query rows."""
    blocks = tl.cdiv(tokens, shape.block_m)
    row_head, rank = locate(tl.program_id(0), batches * heads, blocks, together)
    batch, head = row_head // heads, row_head % heads
    q = Pair(at_head(attention.q_student, batch, head), at_head(attention.q_teacher, batch, head))
    k = Pair(
        at_head(attention.k_student, batch, head // attention.student_group),
        at_head(attention.k_teacher, batch, head // attention.teacher_group),
    )
    scale = Pair(attention.student_scale, attention.teacher_scale)
    start = (blocks - 1 - rank) * shape.block_m
    _forward(q, k, scale, masks, results, batch, row_head, start, tokens, window, shape)


@triton.jit
def _forward(q, k, scale, masks, results, batch, row_head, start, tokens, window, shape):
    """Rows from ``start`` on, in one pass over the columns."""
    blocks = columns_of(masks, batch, start, tokens, window, shape)
    own = load_tokens(masks, batch, start, tokens, shape.block_m)
    q_block = Pair(
        load(q.student, start, tokens, shape.block_m, shape.block_ds, False),
        load(q.teacher, start, tokens, shape.block_m, shape.block_dt, False),
    )
    zero = tl.zeros([shape.block_m], tl.float32)
    totals = Totals(zero + HIDDEN, zero, zero + HIDDEN, zero, zero)
    # The edges come first: scores on the diagonal are often the largest of the row, and the running
    # maxima then stay the same.
    before = (blocks.inner_first - blocks.first) // shape.block_n
    edges = before + tl.cdiv(blocks.stop - blocks.inner_stop, shape.block_n)
    for edge in tl.range(0, edges):
        tile = blocks.first + edge * shape.block_n
        tile += tl.where(edge >= before, blocks.inner_stop - blocks.inner_first, 0)
        totals = _forward_tile(
            totals, own, q_block, k, scale, masks, batch, tile, tokens, window, shape, True
        )
    for tile in tl.range(blocks.inner_first, blocks.inner_stop, shape.block_n):
        totals = _forward_tile(
            totals, own, q_block, k, scale, masks, batch, tile, tokens, window, shape, False
        )

    # A padding row may have seen nothing. It gets KL 0, and numbers that the backward can use.
    saw_any = totals.teacher_peak > 0.5 * HIDDEN
    student_peak = tl.where(saw_any, totals.student_peak, 0.0)
    teacher_peak = tl.where(saw_any, totals.teacher_peak, 0.0)
    student_sum = tl.where(saw_any, totals.student_sum, 1.0)
    teacher_sum = tl.where(saw_any, totals.teacher_sum, 1.0)
    # One logarithm of a ratio: the rounding of a difference of two may exceed the KL.
    kl = LN_2 * (totals.gap / teacher_sum + tl.log2(student_sum / teacher_sum))
    offset = tl.cast(row_head, tl.int64) * tokens + own.position
    inside = own.position < tokens
    tl.store(results.kl + offset, tl.where(saw_any, kl, 0.0), mask=inside)
    tl.store(results.student_peak + offset, student_peak, mask=inside)
    tl.store(results.student_sum + offset, student_sum, mask=inside)
    tl.store(results.teacher_peak + offset, teacher_peak, mask=inside)
    tl.store(results.teacher_sum + offset, teacher_sum, mask=inside)


@triton.jit
def _forward_tile(
    totals, own, q, k, scale, masks, batch, start, tokens, window, shape, EDGE: tl.constexpr
):
    """Adds the columns from ``start`` on. ``EDGE``: some rows do not see all of them."""
    LABELLED: tl.constexpr = masks.reach is not None
    N: tl.constexpr = shape.block_n
    k_student = load(k.student, start, tokens, N, shape.block_ds, shape.whole_ds and not EDGE)
    s = scores(q.student, k_student, scale.student, shape.precision)
    k_teacher = load(k.teacher, start, tokens, N, shape.block_dt, shape.whole_dt and not EDGE)
    t = scores(q.teacher, k_teacher, scale.teacher, shape.precision)
    if EDGE:
        column = (start + tl.arange(0, N))[None, :]
        seen = seen_by_position(own.position[:, None], column, tokens, window, shape.causal)
        if LABELLED:
            seen = seen & agree(own, load_tokens(masks, batch, start, tokens, N))
        s = tl.where(seen, s, HIDDEN)
        t = tl.where(seen, t, HIDDEN)
    return add_columns(totals, s, t)


@triton.jit
def self_backward_kernel(
    relations, masks, weights, units, batches, heads, tokens, window, together, shape: tl.constexpr
):
    """``dX_i = scale * sum_j (G_ij + G_ji) X_j`` of all relations' heads.

    Scores of a self-relation are symmetric, so the scores of a tile serve its rows and its columns.
    ``units`` ``[batch * heads]`` are the factors that the upstream gradients in ``weights`` were
    divided by.
    """
    blocks = tl.cdiv(tokens, shape.block_m)
    row_head, rank = locate(tl.program_id(0), batches * heads, blocks, together)
    batch, head = row_head // heads, row_head % heads
    relation = choose_relation(relations, head)
    head -= relation.first_head
    x = Pair(at_head(relation.student, batch, head), at_head(relation.teacher, batch, head))
    scale = Pair(relation.student_scale, relation.teacher_scale)
    start = rank * shape.block_m

    own = load_tokens(masks, batch, start, tokens, shape.block_m)
    rows = load_weights(weights, row_head, start, tokens, shape.block_m)
    x_block = Pair(
        load(x.student, start, tokens, shape.block_m, shape.block_ds, False),
        load(x.teacher, start, tokens, shape.block_m, shape.block_dt, False),
    )
    gradient = tl.zeros([shape.block_m, shape.block_ds], tl.float32)
    near = neighbours_of(masks, batch, start, tokens, window, shape)
    before = (near.seen_first - near.first) // shape.block_n
    middle = before + (near.seers_first - near.seen_stop) // shape.block_n
    edges = middle + tl.cdiv(near.stop - near.seers_stop, shape.block_n)
    for edge in tl.range(0, edges):
        tile = near.first + edge * shape.block_n
        tile += tl.where(edge >= before, near.seen_stop - near.seen_first, 0)
        tile += tl.where(edge >= middle, near.seers_stop - near.seers_first, 0)
        gradient = _backward_tile(
            gradient, own, rows, x_block, x, scale, masks, weights, batch, row_head, tile,
            tokens, window, shape, True, True, True,
        )  # fmt: skip
    for tile in tl.range(near.seen_first, near.seen_stop, shape.block_n):
        gradient = _backward_tile(
            gradient, own, rows, x_block, x, scale, masks, weights, batch, row_head, tile,
            tokens, window, shape, True, not shape.causal, False,
        )  # fmt: skip
    if shape.causal:
        for tile in tl.range(near.seers_first, near.seers_stop, shape.block_n):
            gradient = _backward_tile(
                gradient, own, rows, x_block, x, scale, masks, weights, batch, row_head, tile,
                tokens, window, shape, False, True, False,
            )  # fmt: skip
    gradient *= relation.student_scale * LN_2 * tl.load(units + row_head)
    out = at_head(relation.gradient, batch, head)
    store(out, gradient, start, tokens, shape.block_m, shape.block_ds)


@triton.jit
def attention_backward_queries_kernel(
    attention, masks, weights, units, batches, heads, tokens, window, together, shape: tl.constexpr
):
    """``dQ = scale * G K`` of all query heads; there is one unit in ``units`` for each key head."""
    blocks = tl.cdiv(tokens, shape.block_m)
    row_head, rank = locate(tl.program_id(0), batches * heads, blocks, together)
    batch, head = row_head // heads, row_head % heads
    k = Pair(
        at_head(attention.k_student, batch, head // attention.student_group),
        at_head(attention.k_teacher, batch, head // attention.teacher_group),
    )
    scale = Pair(attention.student_scale, attention.teacher_scale)
    start = (blocks - 1 - rank) * shape.block_m

    own = load_tokens(masks, batch, start, tokens, shape.block_m)
    rows = load_weights(weights, row_head, start, tokens, shape.block_m)
    q_student = at_head(attention.q_student, batch, head)
    q_teacher = at_head(attention.q_teacher, batch, head)
    q_block = Pair(
        load(q_student, start, tokens, shape.block_m, shape.block_ds, False),
        load(q_teacher, start, tokens, shape.block_m, shape.block_dt, False),
    )
    gradient = tl.zeros([shape.block_m, shape.block_ds], tl.float32)
    seen = columns_of(masks, batch, start, tokens, window, shape)
    before = (seen.inner_first - seen.first) // shape.block_n
    edges = before + tl.cdiv(seen.stop - seen.inner_stop, shape.block_n)
    for edge in tl.range(0, edges):
        tile = seen.first + edge * shape.block_n
        tile += tl.where(edge >= before, seen.inner_stop - seen.inner_first, 0)
        gradient = _backward_tile(
            gradient, own, rows, q_block, k, scale, masks, weights, batch, row_head, tile,
            tokens, window, shape, True, False, True,
        )  # fmt: skip
    for tile in tl.range(seen.inner_first, seen.inner_stop, shape.block_n):
        gradient = _backward_tile(
            gradient, own, rows, q_block, k, scale, masks, weights, batch, row_head, tile,
            tokens, window, shape, True, False, False,
        )  # fmt: skip
    unit = tl.load(units + row_head // attention.student_group)
    gradient *= attention.student_scale * LN_2 * unit
    out = at_head(attention.gradient, batch, head)
    store(out, gradient, start, tokens, shape.block_m, shape.block_ds)


@triton.jit
def attention_backward_keys_kernel(
    attention,
    masks,
    weights,
    units,
    batches,
    key_heads,
    tokens,
    window,
    together,
    shape: tl.constexpr,
):
    """``dK = scale * G^T Q`` of the student's key heads, summed over the query heads of each."""
    blocks = tl.cdiv(tokens, shape.block_m)
    column_head, rank = locate(tl.program_id(0), batches * key_heads, blocks, together)
    batch, key_head = column_head // key_heads, column_head % key_heads
    scale = Pair(attention.student_scale, attention.teacher_scale)
    # Most rows see the first columns, so these start first.
    start = rank * shape.block_m

    own = load_tokens(masks, batch, start, tokens, shape.block_m)
    k_student = at_head(attention.k_student, batch, key_head)
    k_student_block = load(k_student, start, tokens, shape.block_m, shape.block_ds, False)
    gradient = tl.zeros([shape.block_m, shape.block_ds], tl.float32)
    seers = rows_of(masks, batch, start, tokens, window, shape)
    before = (seers.inner_first - seers.first) // shape.block_n
    edges = before + tl.cdiv(seers.stop - seers.inner_stop, shape.block_n)
    for member in tl.range(0, attention.student_group):
        head = key_head * attention.student_group + member
        row_head = batch * key_heads * attention.student_group + head
        q = Pair(
            at_head(attention.q_student, batch, head), at_head(attention.q_teacher, batch, head)
        )
        k_teacher = at_head(attention.k_teacher, batch, head // attention.teacher_group)
        k_teacher_block = load(k_teacher, start, tokens, shape.block_m, shape.block_dt, False)
        k_block = Pair(k_student_block, k_teacher_block)
        for edge in tl.range(0, edges):
            tile = seers.first + edge * shape.block_n
            tile += tl.where(edge >= before, seers.inner_stop - seers.inner_first, 0)
            gradient = _backward_tile(
                gradient, own, None, k_block, q, scale, masks, weights, batch, row_head, tile,
                tokens, window, shape, False, True, True,
            )  # fmt: skip
        for tile in tl.range(seers.inner_first, seers.inner_stop, shape.block_n):
            gradient = _backward_tile(
                gradient, own, None, k_block, q, scale, masks, weights, batch, row_head, tile,
                tokens, window, shape, False, True, False,
            )  # fmt: skip
    gradient *= attention.student_scale * LN_2 * tl.load(units + column_head)
    out = at_head(attention.gradient, batch, key_head)
    store(out, gradient, start, tokens, shape.block_m, shape.block_ds)


@triton.jit
def _backward_tile(
    gradient,
    own,
    rows,
    x,
    others,
    scale,
    masks,
    weights,
    batch,
    row_head,
    start,
    tokens,
    window,
    shape,
    OWN_SEES: tl.constexpr,
    OTHER_SEES: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Adds the share of the other block, from ``start``, to the own block's gradient ``[M, D]``.

    ``OWN_SEES``: the own tokens are rows with weights ``rows``, and see the other tokens.
    ``OTHER_SEES``: the other tokens are rows with the weights of ``row_head``, and see the own.
    ``EDGE``: some of these rows do not see all columns.
    """
    LABELLED: tl.constexpr = masks.reach is not None
    N: tl.constexpr = shape.block_n
    student = load(others.student, start, tokens, N, shape.block_ds, shape.whole_ds and not EDGE)
    s = scores(x.student, student, scale.student, shape.precision)
    teacher = load(others.teacher, start, tokens, N, shape.block_dt, shape.whole_dt and not EDGE)
    t = scores(x.teacher, teacher, scale.teacher, shape.precision)
    total = tl.zeros_like(s)
    own_position = own.position[:, None]
    other_position = (start + tl.arange(0, N))[None, :]
    if OWN_SEES:
        share = rows.student_weight[:, None] * tl.exp2(s - rows.student_peak[:, None])
        share -= rows.teacher_weight[:, None] * tl.exp2(t - rows.teacher_peak[:, None])
        if EDGE:
            seen = seen_by_position(own_position, other_position, tokens, window, shape.causal)
            share = tl.where(seen, share, 0.0)
        total += share
    if OTHER_SEES:
        seers = load_weights(weights, row_head, start, tokens, N)
        share = seers.student_weight[None, :] * tl.exp2(s - seers.student_peak[None, :])
        share -= seers.teacher_weight[None, :] * tl.exp2(t - seers.teacher_peak[None, :])
        if EDGE:
            seen = seen_by_position(other_position, own_position, tokens, window, shape.causal)
            share = tl.where(seen, share, 0.0)
        total += share
    if EDGE and LABELLED:
        agrees = agree(own, load_tokens(masks, batch, start, tokens, N))
        total = tl.where(agrees, total, 0.0)
    total = total.to(student.dtype)
    return tl.dot(total, student, gradient, input_precision=shape.precision)


@triton.jit
def spans_kernel(spans, segments, real, tokens, granules):
    """Smallest and largest segment id of each granule's real tokens.

    A granule without real tokens gets a range that meets no other. ``spans`` is
    ``[batch, 3, granules]`` int64; the third number says whether the granule has no padding.
    """
    batch, granule = tl.program_id(0) // granules, tl.program_id(0) % granules
    position = granule * GRANULE + tl.arange(0, GRANULE)
    offset = tl.cast(batch, tl.int64) * tokens + position
    inside = position < tokens
    counts = inside
    segment = tl.zeros([GRANULE], tl.int64)
    if segments is not None:
        segment = tl.load(segments + offset, mask=inside, other=0).to(tl.int64)
    if real is not None:
        counts = tl.load(real + offset, mask=inside, other=0) != 0
    LARGEST: tl.constexpr = 9223372036854775807
    entry = spans + 3 * tl.cast(batch, tl.int64) * granules + granule
    tl.store(entry, tl.min(tl.where(counts, segment, LARGEST), 0))
    tl.store(entry + granules, tl.max(tl.where(counts, segment, -LARGEST), 0))
    padding = tl.sum((inside & (counts == 0)).to(tl.int32), 0)
    tl.store(entry + 2 * granules, (padding == 0).to(tl.int64))


@triton.jit
def reach_kernel(reach, spans, tokens, granules, CHUNK: tl.constexpr):
    """The reach of the program's granule: two ranges of tokens, each as first and last + 1.

    The first range covers the granules whose segments meet those of the program's granule. It is
    exact for packed sequences numbered in order; otherwise it may be too wide, never too narrow.
    The second range covers the granules around it that hold only its segment. It is empty for a
    granule with several segments or with padding.
    """
    batch, granule = tl.program_id(0) // granules, tl.program_id(0) % granules
    spans += 3 * tl.cast(batch, tl.int64) * granules
    least, greatest = tl.load(spans + granule), tl.load(spans + granules + granule)
    first, stop = tokens, 0
    before, after = 0, granules
    for chunk in tl.range(0, granules, CHUNK):
        other = chunk + tl.arange(0, CHUNK)
        inside = other < granules
        other_least = tl.load(spans + other, mask=inside, other=0)
        other_greatest = tl.load(spans + granules + other, mask=inside, other=0)
        meet = inside & (other_least <= greatest) & (other_greatest >= least)
        first = tl.minimum(first, tl.min(tl.where(meet, other * GRANULE, tokens), 0))
        stop = tl.maximum(stop, tl.max(tl.where(meet, (other + 1) * GRANULE, 0), 0))
        full = tl.load(spans + 2 * granules + other, mask=inside, other=0) != 0
        same = full & (other_least == least) & (other_greatest == least)
        differs = inside & (same == 0)
        before = tl.maximum(before, tl.max(tl.where(differs & (other <= granule), other + 1, 0), 0))
        after = tl.minimum(
            after, tl.min(tl.where(differs & (other >= granule), other, granules), 0)
        )
    entry = reach + 4 * (tl.cast(batch, tl.int64) * granules + granule)
    tl.store(entry, first)
    tl.store(entry + 1, tl.minimum(stop, tokens))
    tl.store(entry + 2, before * GRANULE)
    tl.store(entry + 3, tl.minimum(after * GRANULE, tokens))


@triton.jit
def weigh_kernel(
    gradient,
    batch_stride,
    head_stride,
    token_stride,
    student_sum,
    teacher_sum,
    student_weight,
    teacher_weight,
    units,
    groups,
    members,
    tokens,
    HEADROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Divides upstream gradients of a group of ``members`` heads by their largest and by the sums.

    ``gradient`` may have any strides; the other tensors are contiguous.
    """
    group = tl.program_id(0)
    rows = members * tokens
    base = tl.cast(group, tl.int64) * rows
    batch = tl.cast(group // groups, tl.int64)
    first_head = (group % groups) * members
    largest = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        head = tl.cast(first_head + row // tokens, tl.int64)
        offset = batch * batch_stride + head * head_stride
        offset += tl.cast(row % tokens, tl.int64) * token_stride
        g = tl.load(gradient + offset, mask=row < rows, other=0.0)
        largest = tl.maximum(largest, tl.abs(g.to(tl.float32)))
    unit = tl.maximum(tl.max(largest, axis=0), TINY * HEADROOM) / HEADROOM
    tl.store(units + group, unit)
    for start in tl.range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < rows
        head = tl.cast(first_head + row // tokens, tl.int64)
        offset = batch * batch_stride + head * head_stride
        offset += tl.cast(row % tokens, tl.int64) * token_stride
        g = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32) / unit
        of_student = tl.load(student_sum + base + row, mask=inside, other=1.0)
        of_teacher = tl.load(teacher_sum + base + row, mask=inside, other=1.0)
        tl.store(student_weight + base + row, g / of_student, mask=inside)
        tl.store(teacher_weight + base + row, g / of_teacher, mask=inside)
