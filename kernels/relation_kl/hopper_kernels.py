"""Kernels for Hopper's matrix units (compute capability 9.0), in Triton's Gluon dialect.

They compute the common case (`hopper.supports`): causal self-relations of bfloat16 or float16 with
head size 64 or 128 and no other mask. Warps have roles and synchronise by barriers in shared
memory. One warp fetches tiles. Warpgroups multiply them and compute exponentials. In the backward
one more warpgroup multiplies gradients, and two more warps add them in a fixed order. README.md
derives the tiling and lists the variants that were measured.

Letters: s student, t teacher. A tile is 64 x 64 scores. Scores are base-2 exponents: products
times ``scale * log2(e)``.
"""

# Gluon's decorators and constants are typed for its compiler, not for a type checker.
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

from typing import Any, NamedTuple

from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Rows and columns of a tile.
TILE = gl.constexpr(64)
# Tiles of columns that a program of the backward owns, one for each warpgroup that computes scores.
# A program of the forward owns as many tiles of rows as its caller says.
OWN_TILES = gl.constexpr(2)
# The backward adds to a row tile's sum in parts of so many columns. So many parts are in flight,
# one for each of the warps that add (`backward_kernel` starts them).
PART = gl.constexpr(64)
PARTS_STAGED = gl.constexpr(2)
# Distance, in integers, of the counters that many programs read and increment.
COUNTER_STEP = gl.constexpr(8)
LN_2 = gl.constexpr(0.6931471805599453)


class Rows(NamedTuple):
    """The place of a head's rows in a tensor's two-dimensional view (`hopper`).

    Token t of head h of batch element b is row ``b * batch_rows + h * head_rows + t``, from
    column ``h * head_columns`` on.
    """

    batch_rows: Any
    head_rows: Any
    head_columns: Any


class Relation(NamedTuple):
    """One relation of a launch; its heads follow those of the relations before it."""

    student: Rows
    teacher: Rows
    student_scale: Any
    teacher_scale: Any
    first_head: Any


class Gradient(NamedTuple):
    """The gradient of a relation, written by the backward: ``[batch, heads, tokens, head_dim]``."""

    pointer: Any
    batch_stride: Any
    head_stride: Any
    token_stride: Any


class Place(NamedTuple):
    """The head that a program works on, and the place of its rows."""

    relation: Any
    batch: Any
    head: Any
    row_head: Any
    student_row: Any
    student_column: Any
    teacher_row: Any
    teacher_column: Any
    student_scale: Any
    teacher_scale: Any


class Ring(NamedTuple):
    """Slots in shared memory that one warp fills and others empty."""

    student: Any
    teacher: Any
    full: Any
    empty: Any


class Held(NamedTuple):
    """A program's operands in shared memory: its own tiles, and the tiles that it visits."""

    student: Any
    teacher: Any
    full: Any
    ring: Ring


class Handed(NamedTuple):
    """Tiles that one warpgroup writes and another reads."""

    tiles: Any
    full: Any
    empty: Any


@builtin
def _reduce_add(descriptor, coordinate, source, _semantic=None):
    """Adds a tile in shared memory to global memory, by the copy engine."""
    coordinate = _semantic._convert_to_ir_values(coordinate, require_i64=False)
    _semantic.builder.create_async_tma_reduce(
        ir.DESCRIPTOR_REDUCE_KIND.ADD, descriptor.handle, coordinate, source.handle
    )


@gluon.jit
def _exp2(x):
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _acquire(pointer):
    """Reads a counter. Afterwards, all writes before the counted increments are visible."""
    return gl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b32 $0, [$1];",
        "=r,l",
        [pointer.to(gl.int64)],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _await_additions():
    """Waits until this thread's additions to global memory are complete and visible."""
    gl.inline_asm_elementwise(
        "cp.async.bulk.wait_group 0; // $0 $1", "=r,r", [0], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _next(slot, phase, SLOTS: gl.constexpr):
    slot += 1
    phase = gl.where(slot == SLOTS, phase ^ 1, phase)
    return gl.where(slot == SLOTS, 0, slot), phase


@gluon.jit
def _locate(heads_in_all, blocks, together):
    """A program's head, and the number of its block in that head.

    ``together`` heads run side by side, block by block. So programs that run at the same time read
    the same rows, and enough long blocks start early.
    """
    program = gl.program_id(0)
    group = program // (together * blocks)
    members = gl.minimum(together, heads_in_all - group * together)
    within = program - group * together * blocks
    return group * together + within % members, within // members


@gluon.jit
def _place(relations, row_head, heads, R: gl.constexpr):
    batch = row_head // heads
    head = row_head % heads
    relation = 0
    chosen = relations[0]
    first = chosen.first_head
    s_batch, s_head, s_column = chosen.student
    t_batch, t_head, t_column = chosen.teacher
    student_scale = chosen.student_scale
    teacher_scale = chosen.teacher_scale
    for r in gl.static_range(1, R):
        other = relations[r]
        here = head >= other.first_head
        relation = gl.where(here, r, relation)
        first = gl.where(here, other.first_head, first)
        s_batch = gl.where(here, other.student.batch_rows, s_batch)
        s_head = gl.where(here, other.student.head_rows, s_head)
        s_column = gl.where(here, other.student.head_columns, s_column)
        t_batch = gl.where(here, other.teacher.batch_rows, t_batch)
        t_head = gl.where(here, other.teacher.head_rows, t_head)
        t_column = gl.where(here, other.teacher.head_columns, t_column)
        student_scale = gl.where(here, other.student_scale, student_scale)
        teacher_scale = gl.where(here, other.teacher_scale, teacher_scale)
    head -= first
    return Place(
        relation,
        batch,
        head,
        row_head,
        batch * s_batch + head * s_head,
        head * s_column,
        batch * t_batch + head * t_head,
        head * t_column,
        student_scale,
        teacher_scale,
    )


@gluon.jit
def _fetch(sides, place, token, barrier, student, teacher, R: gl.constexpr):
    """Starts the copy of both sides' tile from a token on; ``barrier`` counts the bytes.

    ``sides`` are the student and teacher of each relation.
    """
    at_s = place.student_row + token
    at_t = place.teacher_row + token
    for r in gl.static_range(R):
        if place.relation == r:
            tma.async_copy_global_to_shared(
                sides[2 * r], [at_s, place.student_column], barrier, student
            )
            tma.async_copy_global_to_shared(
                sides[2 * r + 1], [at_t, place.teacher_column], barrier, teacher
            )


@gluon.jit
def _fetch_all(
    sides,
    place,
    held,
    own,
    count,
    OWN: gl.constexpr,
    BACKWARD: gl.constexpr,
    R: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """The work of the warp that fetches: ``OWN`` own tiles, then ``count`` tiles into the ring.

    Own tiles begin at token ``own``. The ring gets the first tiles in the forward. In the backward
    it gets the tiles from the own on, the last one first.
    """
    TILE_BYTES: gl.constexpr = TILE * D * 2
    mbarrier.expect(held.full, 2 * OWN * TILE_BYTES)
    for w in gl.static_range(OWN):
        student, teacher = held.student.index(w), held.teacher.index(w)
        _fetch(sides, place, own + w * TILE, held.full, student, teacher, R)
    ring = held.ring
    slot = 0
    phase = 1
    for n in range(count):
        full = ring.full.index(slot)
        mbarrier.wait(ring.empty.index(slot), phase)
        mbarrier.expect(full, 2 * TILE_BYTES)
        student, teacher = ring.student.index(slot), ring.teacher.index(slot)
        token = own + (count - 1 - n) * TILE if BACKWARD else n * TILE
        _fetch(sides, place, token, full, student, teacher, R)
        slot, phase = _next(slot, phase, SLOTS)


@gluon.jit
def _hold(
    dtype: gl.constexpr,
    OWN: gl.constexpr,
    SLOTS: gl.constexpr,
    D: gl.constexpr,
    READERS: gl.constexpr,
):
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    return Held(
        gl.allocate_shared_memory(dtype, [OWN, TILE, D], layout),
        gl.allocate_shared_memory(dtype, [OWN, TILE, D], layout),
        _allocate_barrier(),
        _allocate_ring(dtype, SLOTS, D, READERS),
    )


@gluon.jit
def _allocate_ring(
    dtype: gl.constexpr, SLOTS: gl.constexpr, D: gl.constexpr, READERS: gl.constexpr
):
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    return Ring(
        gl.allocate_shared_memory(dtype, [SLOTS, TILE, D], layout),
        gl.allocate_shared_memory(dtype, [SLOTS, TILE, D], layout),
        _allocate_barriers(SLOTS, 1),
        _allocate_barriers(SLOTS, READERS),
    )


@gluon.jit
def _allocate_barrier():
    barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(barrier, count=1)
    return barrier


@gluon.jit
def _allocate_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for k in gl.static_range(COUNT):
        mbarrier.init(barriers.index(k), count=ARRIVALS)
    return barriers


@gluon.jit
def forward_kernel(
    s0,
    t0,
    s1,
    t1,
    s2,
    t2,
    relations,
    results,
    heads_in_all,
    heads,
    tokens,
    together,
    OWN: gl.constexpr,
    R: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """KL, peaks and sums of ``OWN`` tiles of rows (two or three), one for each warpgroup.

    The peak of a row is its score with itself, which it always sees. This may not be its largest
    score, but exponents stay in float32's range unless scores are extreme. `hopper` then has the
    rows computed again.
    """
    BLOCK: gl.constexpr = OWN * TILE
    blocks = gl.cdiv(tokens, BLOCK)
    row_head, rank = _locate(heads_in_all, blocks, together)
    place = _place(relations, row_head, heads, R)
    # The last rows see most columns, so they start first.
    start = (blocks - 1 - rank) * BLOCK
    tiles = start // TILE + OWN
    held = _hold(s0.dtype, OWN, SLOTS, D, OWN)
    by_word: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    sums = gl.allocate_shared_memory(gl.float32, [5 * OWN, TILE], by_word)
    sides = (s0, t0, s1, t1, s2, t2)
    scale_s, scale_t = place.student_scale, place.teacher_scale
    # Written out twice: Gluon cannot unpack a tuple, and a joined tuple loses its constexpr values.
    if OWN == 3:
        gl.warp_specialize(
            [
                (_forward_rows, (held, sums, start, tiles, scale_s, scale_t, 0, OWN, SLOTS)),
                (_forward_rows, (held, sums, start, tiles, scale_s, scale_t, 1, OWN, SLOTS)),
                (_forward_rows, (held, sums, start, tiles, scale_s, scale_t, 2, OWN, SLOTS)),
                (_fetch_all, (sides, place, held, start, tiles, OWN, False, R, D, SLOTS)),
            ],
            [4, 4, 1],
            [152, 152, 24],
        )
    else:
        # Of the 80 registers per thread that each of two programs on a multiprocessor has.
        gl.warp_specialize(
            [
                (_forward_rows, (held, sums, start, tiles, scale_s, scale_t, 0, OWN, SLOTS)),
                (_forward_rows, (held, sums, start, tiles, scale_s, scale_t, 1, OWN, SLOTS)),
                (_fetch_all, (sides, place, held, start, tiles, OWN, False, R, D, SLOTS)),
            ],
            [4, 1],
            [104, 24],
        )
    by_thread: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    for w in gl.static_range(OWN):
        token = start + w * TILE + gl.arange(0, TILE, by_thread)
        offset = place.row_head.to(gl.int64) * tokens + token
        for k in gl.static_range(5):
            values = sums.index(k * OWN + w).load(by_thread)
            gl.store(results[k] + offset, values, mask=token < tokens)


@gluon.jit
def _sum_own(x):
    """Row sums over each thread's own columns, [64, 4]. They need no shuffles until the end."""
    return gl.sum(gl.sum(gl.reshape(x, [TILE, TILE // 8, 4, 2]), axis=3), axis=1)


@gluon.jit
def _squares(x):
    """Each row's product with itself, in float32."""
    return gl.sum(x.to(gl.float32) * x.to(gl.float32), axis=1)


@gluon.jit
def _add(total, x):
    return total + gl.convert_layout(_sum_own(x), total.type.layout, assert_trivial=True)


@gluon.jit
def _add_scores(sum_s, sum_t, gap, s, t):
    """Adds centred scores to a row's sums, and to the expectation of their difference."""
    e_s = _exp2(s)
    e_t = _exp2(t)
    weighted = e_t * (t - s)
    return _add(sum_s, e_s), _add(sum_t, e_t), _add(gap, weighted)


@gluon.jit
def _start_scores(x_s, x_t, y_s, y_t, accumulators: gl.constexpr):
    """Starts both sides' products of a tile; the first operand is rows, the second columns."""
    none = gl.zeros([TILE, TILE], gl.float32, accumulators)
    s = warpgroup_mma(x_s, y_s.permute((1, 0)), none, use_acc=False, is_async=True)
    t = warpgroup_mma(x_t, y_t.permute((1, 0)), none, use_acc=False, is_async=True)
    return s, t


@gluon.jit
def _forward_rows(
    held,
    sums,
    start,
    tiles,
    scale_s,
    scale_t,
    W: gl.constexpr,
    OWN: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """One warpgroup's rows. For each tile it waits for both products, then computes exponentials.

    Meanwhile the products of the other warpgroups run.
    """
    accumulators: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, accumulators)
    operand: gl.constexpr = gl.DotOperandLayout(0, accumulators, 2)
    ring = held.ring
    x_s = held.student.index(W)
    x_t = held.teacher.index(W)
    mbarrier.wait(held.full, 0)
    peak_s = gl.convert_layout(_squares(x_s.load(operand)) * scale_s, by_row)
    peak_t = gl.convert_layout(_squares(x_t.load(operand)) * scale_t, by_row)
    nothing = _sum_own(gl.zeros([TILE, TILE], gl.float32, accumulators))
    sum_s = nothing
    sum_t = nothing
    gap = nothing

    # The rows see all of the tiles before the one on the diagonal.
    before = start // TILE + W
    slot = 0
    phase = 0
    for _ in range(before):
        s, t = _scores(x_s, x_t, ring, slot, phase, accumulators)
        s = s * scale_s - peak_s[:, None]
        t = t * scale_t - peak_t[:, None]
        sum_s, sum_t, gap = _add_scores(sum_s, sum_t, gap, s, t)
        slot, phase = _next(slot, phase, SLOTS)
    s, t = _scores(x_s, x_t, ring, slot, phase, accumulators)
    rows = start + W * TILE + gl.arange(0, TILE, by_row)
    columns = before * TILE + gl.arange(0, TILE, gl.SliceLayout(0, accumulators))
    # Subtracted, not selected: a select between products makes the compiler wait for each
    # product separately.
    hidden = gl.where(rows[:, None] >= columns[None, :], 0.0, 1e30)
    s = s * scale_s - (peak_s[:, None] + hidden)
    t = t * scale_t - (peak_t[:, None] + hidden)
    sum_s, sum_t, gap = _add_scores(sum_s, sum_t, gap, s, t)
    # Only rows of later warpgroups see these tiles. This one waits for them all the same, since
    # otherwise a slot's count of readers would run ahead.
    for _ in range(before + 1, tiles):
        slot, phase = _next(slot, phase, SLOTS)
        mbarrier.wait(ring.full.index(slot), phase)
        mbarrier.arrive(ring.empty.index(slot), count=1)

    total_s = gl.convert_layout(gl.sum(sum_s, axis=1), by_row)
    total_t = gl.convert_layout(gl.sum(sum_t, axis=1), by_row)
    total_gap = gl.convert_layout(gl.sum(gap, axis=1), by_row)
    # One logarithm of a ratio: the rounding of a difference of two may exceed the KL.
    kl = LN_2 * (total_gap / total_t + gl.log2(total_s / total_t))
    # The first row sees only itself. Its score and its peak are the same sum in two orders.
    kl = gl.where(rows == 0, 0.0, kl)
    # Another function stores these to global memory: the addresses would take registers here.
    sums.index(0 * OWN + W).store(kl)
    sums.index(1 * OWN + W).store(peak_s)
    sums.index(2 * OWN + W).store(total_s)
    sums.index(3 * OWN + W).store(peak_t)
    sums.index(4 * OWN + W).store(total_t)


@gluon.jit
def _scores(x_s, x_t, ring, slot, phase, accumulators: gl.constexpr):
    """Both sides' products of own rows with the columns in a slot; frees the slot."""
    mbarrier.wait(ring.full.index(slot), phase)
    y_s = ring.student.index(slot)
    y_t = ring.teacher.index(slot)
    s, t = _start_scores(x_s, x_t, y_s, y_t, accumulators)
    s, t = warpgroup_mma_wait(0, deps=[s, t])
    mbarrier.arrive(ring.empty.index(slot), count=1)
    return s, t


@gluon.jit
def backward_kernel(
    s0,
    t0,
    s1,
    t1,
    s2,
    t2,
    sums,
    sum_pointer,
    relations,
    gradients,
    weights,
    units,
    counters,
    heads_in_all,
    heads,
    tokens,
    together,
    R: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """``dX = scale * (G + G^T) X``; the scores of each tile are computed once.

    A program owns `OWN_TILES` tiles of columns and walks over the rows that see them, from the
    last to the diagonal. ``G^T X`` of its own columns stays in registers. ``G X`` of the rows is
    added to ``sums``, float32. Programs add to a row tile in the order of their columns, so the
    bits are the same every time; ``counters`` say whose turn it is. A program waits only for
    programs with smaller numbers, which start no later. At the end the sum of its own rows is
    complete, and its registers complete the gradient.
    """
    OWN: gl.constexpr = OWN_TILES * TILE
    blocks = gl.cdiv(tokens, OWN)
    tiles = gl.cdiv(tokens, TILE)
    row_head, block = _locate(heads_in_all, blocks, together)
    place = _place(relations, row_head, heads, R)
    first = block * OWN_TILES
    count = tiles - first
    # Read by the warpgroups that compute scores and by the one that multiplies gradients.
    held = _hold(s0.dtype, OWN_TILES, SLOTS, D, OWN_TILES + 1)
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    g = Handed(
        gl.allocate_shared_memory(s0.dtype, [OWN_TILES, TILE, TILE], layout),
        _allocate_barriers(OWN_TILES, 1),
        _allocate_barrier(),
    )
    wide: gl.constexpr = gl.NVMMASharedLayout(128, 32, rank=2)
    staged = Handed(
        gl.allocate_shared_memory(gl.float32, [PARTS_STAGED, TILE, PART], wide),
        _allocate_barriers(PARTS_STAGED, 1),
        _allocate_barriers(PARTS_STAGED, 1),
    )
    sum_row = (row_head * tiles + first) * TILE
    counters += (row_head * tiles + first) * (D // PART) * COUNTER_STEP
    sides = (s0, t0, s1, t1, s2, t2)
    gl.warp_specialize(
        [
            (
                _multiply_gradients,
                (
                    held,
                    g,
                    staged,
                    sum_pointer,
                    gradients,
                    units,
                    counters,
                    place,
                    sum_row,
                    block,
                    first,
                    count,
                    tokens,
                    R,
                    D,
                    SLOTS,
                ),
            ),
            (_make_scores, (held, g, weights, place, first, count, tokens, 0, SLOTS)),
            (_make_scores, (held, g, weights, place, first, count, tokens, 1, SLOTS)),
            (_fetch_all, (sides, place, held, first * TILE, count, OWN_TILES, True, R, D, SLOTS)),
            (_add_in_turn, (sums, staged, counters, sum_row, block, count, D, 0)),
            (_add_in_turn, (sums, staged, counters, sum_row, block, count, D, 1)),
        ],
        [4, 4, 1, 1, 1],
        [128, 128, 24, 24, 24],
    )


@gluon.jit
def _load_weights(weights, offset, rows, tokens):
    """Both sides' peaks and weights of rows.

    Rows past the last token have weight 0 and a peak so high that their exponentials are 0.
    """
    inside = (rows >= 0) & (rows < tokens)
    peak_s = gl.load(weights.student_peak + offset + rows, mask=inside, other=1e30)
    peak_t = gl.load(weights.teacher_peak + offset + rows, mask=inside, other=1e30)
    weight_s = gl.load(weights.student_weight + offset + rows, mask=inside, other=0.0)
    weight_t = gl.load(weights.teacher_weight + offset + rows, mask=inside, other=0.0)
    return peak_s, peak_t, weight_s, weight_t


@gluon.jit
def _make_scores(
    held, g, weights, place, first, count, tokens, W: gl.constexpr, SLOTS: gl.constexpr
):
    """One warpgroup's column tile of ``G``.

    ``G = weight_s * 2^(s - peak_s) - weight_t * 2^(t - peak_t)``.
    """
    accumulators: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, accumulators)
    columns = (first + W) * TILE + gl.arange(0, TILE, gl.SliceLayout(0, accumulators))
    offset = place.row_head.to(gl.int64) * tokens
    last = (first + count - 1) * TILE + gl.arange(0, TILE, by_row)
    ring = held.ring
    mbarrier.wait(held.full, 0)
    slot = 0
    phase = 0
    peak_s, peak_t, weight_s, weight_t = _load_weights(weights, offset, last, tokens)
    for n in range(count):
        mbarrier.wait(ring.full.index(slot), phase)
        s, t = _start_scores(
            ring.student.index(slot),
            ring.teacher.index(slot),
            held.student.index(W),
            held.teacher.index(W),
            accumulators,
        )
        # Loaded a tile ahead, so that nothing waits for them.
        later = _load_weights(weights, offset, last - (n + 1) * TILE, tokens)
        s, t = warpgroup_mma_wait(0, deps=[s, t])
        mbarrier.arrive(ring.empty.index(slot), count=1)
        p_s = _exp2(s * place.student_scale - peak_s[:, None])
        p_t = _exp2(t * place.teacher_scale - peak_t[:, None])
        difference = p_s * weight_s[:, None] - p_t * weight_t[:, None]
        if count - 1 - n <= W:
            rows = last - n * TILE
            difference = gl.where(rows[:, None] >= columns[None, :], difference, 0.0)
        peak_s, peak_t, weight_s, weight_t = later
        mbarrier.wait(g.empty, (n & 1) ^ 1)
        g.tiles.index(W).store(difference.to(g.tiles.dtype))
        fence_async_shared()
        mbarrier.arrive(g.full.index(W), count=1)
        slot, phase = _next(slot, phase, SLOTS)


@gluon.jit
def _multiply_gradients(
    held,
    g,
    staged,
    sum_pointer,
    gradients,
    units,
    counters,
    place,
    sum_row,
    block,
    first,
    count,
    tokens,
    R: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
):
    accumulators: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    none = gl.zeros([TILE, D], gl.float32, accumulators)
    own_0 = none
    own_1 = none
    ring = held.ring
    slot = 0
    phase = 0
    for n in range(count):
        x = ring.student.index(slot)
        mbarrier.wait(g.full.index(0), n & 1)
        g_0 = g.tiles.index(0)
        rows = warpgroup_mma(g_0, held.student.index(0), none, use_acc=False, is_async=True)
        own_0 = warpgroup_mma(g_0.permute((1, 0)), x, own_0, is_async=True)
        mbarrier.wait(g.full.index(1), n & 1)
        g_1 = g.tiles.index(1)
        rows = warpgroup_mma(g_1, held.student.index(1), rows, is_async=True)
        own_1 = warpgroup_mma(g_1.permute((1, 0)), x, own_1, is_async=True)
        rows, own_0, own_1 = warpgroup_mma_wait(0, deps=[rows, own_0, own_1])
        mbarrier.arrive(g.empty, count=1)
        mbarrier.arrive(ring.empty.index(slot), count=1)
        _stage(staged, rows, n, D)
        slot, phase = _next(slot, phase, SLOTS)

    # The sum is complete once this program has added its own rows: it is the last in turn.
    for part in gl.static_range(OWN_TILES * D // PART):
        if part * PART // D < count:
            while _acquire(counters + part * COUNTER_STEP) <= block:
                pass
    pointer = gradients[0].pointer
    batch_stride = gradients[0].batch_stride
    head_stride = gradients[0].head_stride
    token_stride = gradients[0].token_stride
    for r in gl.static_range(1, R):
        if place.relation == r:
            pointer = gradients[r].pointer
            batch_stride = gradients[r].batch_stride
            head_stride = gradients[r].head_stride
            token_stride = gradients[r].token_stride
    pointer += place.batch.to(gl.int64) * batch_stride + place.head.to(gl.int64) * head_stride
    factor = place.student_scale * LN_2 * gl.load(units + place.row_head)
    _complete(own_0, factor, sum_pointer, sum_row, pointer, first * TILE, token_stride, tokens, D)
    if count > 1:
        _complete(
            own_1,
            factor,
            sum_pointer,
            sum_row + TILE,
            pointer,
            (first + 1) * TILE,
            token_stride,
            tokens,
            D,
        )


@gluon.jit
def _complete(
    own, factor, sum_pointer, sum_row, pointer, start, token_stride, tokens, D: gl.constexpr
):
    """Stores a tile of the gradient: the sum in memory plus the sum in registers."""
    accumulators: gl.constexpr = own.type.layout
    row = gl.arange(0, TILE, gl.SliceLayout(1, accumulators))
    column = gl.arange(0, D, gl.SliceLayout(0, accumulators))
    summed = gl.convert_layout(_load_sums(sum_pointer, sum_row, own, D), accumulators)
    token = start + row
    gradient = (own + summed) * factor
    gl.store(
        pointer + token.to(gl.int64)[:, None] * token_stride + column[None, :],
        gradient.to(pointer.dtype.element_ty),
        mask=(token < tokens)[:, None],
    )


@gluon.jit
def _to_parts(x, D: gl.constexpr):
    """A tile ``[TILE, D]`` of products as parts ``[TILE, PART]``, with its elements rearranged.

    In the new order a thread has four elements side by side, and eight threads have 128 bytes, so
    they are stored to shared memory without bank conflicts. Sums may have any order that all their
    users share.

    Axes of a row are warp (4), half (2) and lane / 4 (4, 2). Axes of a column are the register's
    number (4, D / PART, 2), lane % 4 (4) and a pair (2).
    """
    x = gl.reshape(x, [4, 2, 4, 2, 4, D // PART, 2, 4, 2])
    x = gl.permute(x, (4, 0, 2, 6, 3, 7, 1, 8, 5))
    x = gl.reshape(x, [TILE, PART, D // PART])
    return (gl.reshape(x, [TILE, PART]),) if D == PART else gl.split(x)


@gluon.jit
def _load_sums(pointer, sum_row, like, D: gl.constexpr):
    """Loads a tile's sum from memory, and restores the order of products."""
    layout: gl.constexpr = _to_parts(like, D)[0].type.layout
    row = sum_row.to(gl.int64) + gl.arange(0, TILE, gl.SliceLayout(1, layout))
    places = pointer + row[:, None] * D + gl.arange(0, PART, gl.SliceLayout(0, layout))[None, :]
    x = gl.load(places)
    if D != PART:
        x = gl.join(x, gl.load(places + PART))
    x = gl.reshape(x, [4, 4, 4, 2, 2, 4, 2, 2, D // PART])
    return gl.reshape(gl.permute(x, (1, 6, 2, 4, 0, 8, 3, 5, 7)), [TILE, D])


@gluon.jit
def _stage(staged, rows, n, D: gl.constexpr):
    """Hands the parts of the n-th row tile to the warps that add them."""
    parts = _to_parts(rows, D)
    for p in gl.static_range(D // PART):
        k = n * (D // PART) + p
        slot = k % PARTS_STAGED
        mbarrier.wait(staged.empty.index(slot), (k // PARTS_STAGED & 1) ^ 1)
        staged.tiles.index(slot).store(parts[p])
        fence_async_shared()
        mbarrier.arrive(staged.full.index(slot), count=1)


@gluon.jit
def _add_in_turn(
    sums, staged, counters, sum_row, block, count, D: gl.constexpr, SLOT: gl.constexpr
):
    """Adds the parts in one slot to the rows' sums, after all programs with earlier columns."""
    PARTS: gl.constexpr = D // PART
    for k in range(SLOT, count * PARTS, PARTS_STAGED):
        row = count - 1 - k // PARTS
        part = k % PARTS
        place = [sum_row + row * TILE, part * PART]
        counter = counters + (row * PARTS + part) * COUNTER_STEP
        tile = staged.tiles.index(SLOT)
        mbarrier.wait(staged.full.index(SLOT), k // PARTS_STAGED & 1)
        while _acquire(counter) < block:
            pass
        if block == 0:
            # This program is the first: it overwrites the memory.
            tma.async_copy_shared_to_global(sums, place, tile)
        else:
            _reduce_add(sums, place, tile)
        # The tile may be overwritten once it has been read. It counts only once it is added.
        tma.store_wait(0)
        mbarrier.arrive(staged.empty.index(SLOT), count=1)
        _await_additions()
        gl.atomic_add(counter, 1, sem="release", scope="gpu")
