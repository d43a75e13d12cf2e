"""Linear memory in plain torch: blocks of rows against the columns that they may see.

The backward pass recomputes the scores chunk by chunk, so nothing of size tokens x tokens ever
exists (README.md: the algorithm and its memory). Shape suffixes: b batch, h heads, t tokens,
d head size; n batch times heads, m batch times key heads, g query heads per key head,
r rows and c columns of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .contract import Scales, Visibility

# The most scores of a chunk, in each of three buffers. On a CPU they about fill the cache; on an
# accelerator they suffice to hide the launches (figures: README.md).
_CHUNK_SCORES = {"cpu": 2**20, "cuda": 2**25}
# The fewest and most rows of a chunk. Fewer rows waste less above the diagonal; more rows make
# fewer chunks.
_CHUNK_ROWS = {"cpu": (64, 64), "cuda": (256, 1024)}

# Replaces minus infinity in hidden scores. It is finite, so that differences of two hidden scores
# are 0 and rows that see nothing stay free of NaN. It is so large that adding it to a score gives
# itself.
_HIDDEN = -1e30


def relation_rows(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    scales: Sequence[Scales],
    visibility: Visibility,
    *,
    allow_tf32: bool,
) -> list[Tensor]:
    """KL by row of each self-relation (`kernels.relation_kl.contract.Implementation`)."""
    return [
        _rows(student, None, teacher, None, scale, visibility, allow_tf32)
        for student, teacher, scale in zip(students, teachers, scales, strict=True)
    ]


def attention_rows(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    scales: Scales,
    visibility: Visibility,
    *,
    allow_tf32: bool,
) -> Tensor:
    """KL by row of attention (`kernels.relation_kl.contract.Implementation`)."""
    return _rows(q_student, k_student, q_teacher, k_teacher, scales, visibility, allow_tf32)


def _rows(
    q_student: Tensor,
    k_student: Tensor | None,
    q_teacher: Tensor,
    k_teacher: Tensor | None,
    scales: Scales,
    visibility: Visibility,
    allow_tf32: bool,
) -> Tensor:
    settings = _Settings(scales, visibility.causal, visibility.window, allow_tf32)
    masks = (visibility.segment_ids, visibility.key_mask)
    # apply() is untyped in torch.
    rows: Any = _ChunkedRows.apply(settings, q_student, k_student, q_teacher, k_teacher, *masks)
    return rows


@dataclass(frozen=True)
class _Settings:
    scales: Scales
    causal: bool
    window: int | None
    allow_tf32: bool


class _ChunkedRows(torch.autograd.Function):
    """Rows of KL. In a self-relation keys are None, and queries are rows and columns."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Any) -> Tensor:
        """``tensors`` are those of `_Problem.of`."""
        ctx.save_for_backward(*tensors)
        ctx.settings = settings
        q_student: Tensor = tensors[0]
        with _plain_products(q_student.device, settings.allow_tf32):
            return _forward(_Problem.of(settings, *tensors)).view(q_student.shape[:3])

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, row_gradient_bht: Tensor
    ) -> tuple[Tensor | None, ...]:
        # Read once: under non-reentrant checkpointing a second reading is an error.
        tensors = ctx.saved_tensors
        q_student, k_student, *_ = tensors
        with torch.no_grad(), _plain_products(q_student.device, ctx.settings.allow_tf32):
            problem = _Problem.of(ctx.settings, *tensors)
            gradient_q, gradient_k = _backward(
                problem, row_gradient_bht.flatten(0, 1), self_relation=k_student is None
            )
        gradient_q = _Once.apply(gradient_q.view(q_student.shape).to(q_student.dtype), q_student)
        if k_student is None:
            return None, gradient_q, None, None, None, None, None
        gradient_k = _Once.apply(gradient_k.view(k_student.shape).to(k_student.dtype), k_student)
        return None, gradient_q, gradient_k, None, None, None, None


class _Once(torch.autograd.Function):
    """A gradient that refuses a second derivative.

    Torch's own `once_differentiable` returns 0 where the upstream gradient is a constant.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, student: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError(
            "relation_kl: backend 'chunked' has no second derivative; use backend='reference'"
        )


@dataclass(frozen=True)
class _Side:
    """One model's operands. Query heads are grouped by key head: a group is one product."""

    q_mgtd: Tensor
    k_mtd: Tensor
    scale: float

    @property
    def group(self) -> int:
        return self.q_mgtd.shape[1]

    @staticmethod
    def of(q_bhtd: Tensor, k_bhtd: Tensor | None, scale: float, dtype: torch.dtype) -> _Side:
        key_heads = (q_bhtd if k_bhtd is None else k_bhtd).shape[1]
        q_mgtd = _operand(q_bhtd, dtype).unflatten(1, (key_heads, -1)).flatten(0, 1)
        if k_bhtd is None:
            return _Side(q_mgtd, q_mgtd[:, 0], scale)
        return _Side(q_mgtd, _operand(k_bhtd, dtype).flatten(0, 1), scale)

    def rows(self, chunk: _Chunk) -> Tensor:
        """Queries of a chunk, ``[key heads, g * r, d]``."""
        return self.q_mgtd[chunk.heads_by(self.group), :, chunk.rows].flatten(1, 2)

    def columns(self, chunk: _Chunk) -> Tensor:
        """Keys of a chunk, ``[key heads, c, d]``."""
        return self.k_mtd[chunk.heads_by(self.group), chunk.columns]


@dataclass(frozen=True)
class _Chunk:
    """Rows of some heads against the columns that any of them may see."""

    heads: slice
    rows: slice
    columns: slice

    def heads_by(self, group: int) -> slice:
        return slice(self.heads.start // group, self.heads.stop // group)

    @property
    def shape(self) -> tuple[int, int, int]:
        return _length(self.heads), _length(self.rows), _length(self.columns)


@dataclass(frozen=True)
class _Problem:
    """A call's operands, masks and chunks, and the three buffers that all chunks share."""

    student: _Side
    teacher: _Side
    segment_ids: Tensor | None
    key_mask: Tensor | None
    settings: _Settings
    heads: int
    chunks: list[_Chunk]
    buffers: tuple[Tensor, Tensor, Tensor]

    @staticmethod
    def of(
        settings: _Settings,
        q_student: Tensor,
        k_student: Tensor | None,
        q_teacher: Tensor,
        k_teacher: Tensor | None,
        segment_ids: Tensor | None,
        key_mask: Tensor | None,
    ) -> _Problem:
        wide = torch.float64 in (q_student.dtype, q_teacher.dtype)
        dtype = torch.float64 if wide else torch.float32
        student = _Side.of(q_student, k_student, settings.scales.student, dtype)
        teacher = _Side.of(q_teacher, k_teacher, settings.scales.teacher, dtype)
        unit = lcm(student.group, teacher.group)
        chunks = list(_chunks(q_student.shape, unit, settings, q_student.device.type))
        size = max(n * r * c for n, r, c in (chunk.shape for chunk in chunks))
        first, second, third = (q_student.new_empty(size, dtype=dtype) for _ in range(3))
        return _Problem(
            student=student,
            teacher=teacher,
            segment_ids=segment_ids,
            key_mask=key_mask,
            settings=settings,
            heads=q_student.shape[1],
            chunks=chunks,
            buffers=(first, second, third),
        )


def _forward(problem: _Problem) -> Tensor:
    """KL by row, ``[batch * heads, tokens]``."""
    first = problem.buffers[0]
    q_mgtd = problem.student.q_mgtd
    kl_nt = first.new_empty(q_mgtd.shape[:3]).flatten(0, 1)
    for chunk in problem.chunks:
        # Log-probabilities are subtracted, which log_softmax centres on each row's maximum. Raw
        # scores of +-300 and their log-sum-exps would cancel.
        student, teacher = _both_sides(problem, chunk, torch.log_softmax)
        gap = torch.sub(teacher, student, out=student)
        kl_nt[chunk.heads, chunk.rows] = gap.mul_(teacher.exp_()).sum(-1)
    return kl_nt


def _backward(
    problem: _Problem, row_gradient_nt: Tensor, *, self_relation: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the student's queries and keys, in the accumulator's dtype.

    In a self-relation both are one tensor, which sums the row side and the column side.
    """
    first = problem.buffers[0]
    q_mgtd, k_mtd = problem.student.q_mgtd, problem.student.k_mtd
    gradient_q = first.new_zeros(q_mgtd.shape)
    gradient_k = gradient_q[:, 0] if self_relation else first.new_zeros(k_mtd.shape)
    weight_nt, peak = _normalised(row_gradient_nt)
    for chunk in problem.chunks:
        student, teacher = _both_sides(problem, chunk, torch.softmax)
        weight = weight_nt[chunk.heads, chunk.rows, None]
        difference = student.sub_(teacher).mul_(weight)
        _accumulate(problem.student, chunk, difference, gradient_q, gradient_k)
    factor = peak * problem.student.scale
    gradient_q *= factor
    if not self_relation:
        gradient_k *= factor
    return gradient_q, gradient_k


def _normalised(row_gradient_nt: Tensor) -> tuple[Tensor, Tensor]:
    """Upstream gradients as weights of at most 1, and the factor that was divided out.

    The gradient of a mean is one over the number of rows. In low-precision products it would
    underflow, while weights of exactly 1 or 0 lose nothing.
    """
    tiny = torch.finfo(row_gradient_nt.dtype).tiny
    peak = row_gradient_nt.abs().amax().clamp_min(tiny)
    return row_gradient_nt / peak, peak


def _both_sides(
    problem: _Problem, chunk: _Chunk, normalise: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's normalised scores of a chunk, in the shared buffers."""
    n, r, c = chunk.shape
    scores, student, teacher = (buffer[: n * r * c].view(n, r, c) for buffer in problem.buffers)
    penalties = list(_penalties(problem, chunk))
    for side, out in ((problem.student, student), (problem.teacher, teacher)):
        _scores(side, chunk, penalties, out=scores)
        normalise(scores, -1, out=out)
    return student, teacher


def _scores(side: _Side, chunk: _Chunk, penalties: Sequence[_Penalty], *, out: Tensor) -> None:
    """Writes the scores of a chunk into ``out`` [n, r, c]; hidden scores are `_HIDDEN`."""
    rows, columns = side.rows(chunk), side.columns(chunk)
    grouped = out.view(rows.shape[0], rows.shape[1], -1)
    if rows.dtype is out.dtype:
        torch.baddbmm(grouped, rows, columns.mT, beta=0, alpha=side.scale, out=grouped)
    else:
        torch.bmm(rows, columns.mT, out_dtype=out.dtype, out=grouped).mul_(side.scale)
    for penalty in penalties:
        penalty.add_to(out)


def _accumulate(
    side: _Side, chunk: _Chunk, difference: Tensor, gradient_q: Tensor, gradient_k: Tensor
) -> None:
    """Adds a chunk's share of dQ = G K and dK = G^T Q. The order of chunks is fixed."""
    rows, columns = side.rows(chunk), side.columns(chunk)
    heads = chunk.heads_by(side.group)
    grouped = difference.view(rows.shape[0], rows.shape[1], -1)
    into_q, into_k = gradient_q[heads, :, chunk.rows], gradient_k[heads, chunk.columns]
    if rows.dtype is grouped.dtype:
        into_q += torch.bmm(grouped, columns).view(into_q.shape)
        into_k.baddbmm_(grouped.mT, rows)
    else:
        wide, grouped = grouped.dtype, grouped.to(rows.dtype)
        into_q += torch.bmm(grouped, columns, out_dtype=wide).view(into_q.shape)
        into_k += torch.bmm(grouped.mT, rows, out_dtype=wide)


@dataclass(frozen=True)
class _Penalty:
    """Added to some columns of a chunk's scores: 0 where visible, else `_HIDDEN`."""

    columns: slice
    values_brc: Tensor  # one entry for all of the chunk's heads, or one a batch element

    def add_to(self, scores_nrc: Tensor) -> None:
        batches = self.values_brc.shape[0]
        by_batch = scores_nrc.view(batches, -1, *scores_nrc.shape[1:])
        by_batch[..., self.columns].add_(self.values_brc[:, None])


def _penalties(problem: _Problem, chunk: _Chunk) -> Iterator[_Penalty]:
    """The masks that can hide something in a chunk, over the columns where they can."""
    first = problem.buffers[0]
    rows, columns, window = chunk.rows, chunk.columns, problem.settings.window
    _, r, c = chunk.shape
    if problem.settings.causal and r > 1:
        diagonal = first.new_full((1, r, r), _HIDDEN).triu_(1)
        yield _Penalty(slice(c - r, c), diagonal)
    if window is not None and c > window:
        oldest = rows.start - columns.start - window
        edge = first.new_full((1, r, c - window), _HIDDEN).tril_(oldest)
        yield _Penalty(slice(0, c - window), edge)
    batches = slice(chunk.heads.start // problem.heads, -(-chunk.heads.stop // problem.heads))
    if problem.segment_ids is not None:
        segment = problem.segment_ids[batches]
        other = segment[:, rows, None] != segment[:, None, columns]
        yield _Penalty(slice(0, c), other.to(first.dtype).mul_(_HIDDEN))
    if problem.key_mask is not None:
        padding = ~problem.key_mask[batches, None, columns]
        yield _Penalty(slice(0, c), padding.to(first.dtype).mul_(_HIDDEN))


def _chunks(
    shape_bhtd: Sequence[int], unit: int, settings: _Settings, device_type: str
) -> Iterator[_Chunk]:
    """Chunks of at most `_CHUNK_SCORES` scores, but of at least one row of ``unit`` heads."""
    batch, heads, tokens, _ = shape_bhtd
    # Other devices are accelerators, and take CUDA's sizes.
    kind = "cpu" if device_type == "cpu" else "cuda"
    budget, (fewest, most) = _CHUNK_SCORES[kind], _CHUNK_ROWS[kind]
    widest = tokens if settings.window is None else min(tokens, settings.window + most)
    rows = min(max(fewest, budget // (batch * heads * widest)), most)
    rows = max(1, min(rows, tokens, budget // (unit * widest)))
    for head_slice in _head_slices(batch, heads, unit, budget // (rows * widest)):
        for start in range(0, tokens, rows):
            stop = min(start + rows, tokens)
            first = 0 if settings.window is None else max(0, start + 1 - settings.window)
            last = stop if settings.causal else tokens
            yield _Chunk(head_slice, slice(start, stop), slice(first, last))


def _head_slices(batch: int, heads: int, unit: int, capacity: int) -> Iterator[slice]:
    """Slices of the batch * heads axis: whole batch elements, or ``unit`` heads of one of them."""
    if capacity >= heads:
        step = capacity // heads * heads
        for start in range(0, batch * heads, step):
            yield slice(start, min(start + step, batch * heads))
        return
    step = max(1, capacity // unit) * unit
    for element in range(0, batch * heads, heads):
        for start in range(element, element + heads, step):
            yield slice(start, min(start + step, element + heads))


def _operand(x_bhtd: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as the products read it. Low precision stays where torch multiplies it into float32.

    Torch does so on CUDA only; elsewhere the tensor is widened.
    """
    low_precision = x_bhtd.dtype in (torch.bfloat16, torch.float16)
    if x_bhtd.is_cuda and low_precision and dtype is torch.float32:
        return x_bhtd.contiguous()
    return x_bhtd.to(dtype).contiguous()


@contextmanager
def _plain_products(device: torch.device, allow_tf32: bool) -> Iterator[None]:
    """Products in the requested precision, whatever autocast and torch's own settings say.

    The setting belongs to the process: it is changed only where it differs, and restored.
    """
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = backend.matmul
    before = matmul.fp32_precision
    wanted = "tf32" if allow_tf32 else "ieee"
    change = before != wanted and not (before == "none" and wanted == "ieee")
    if change:
        matmul.fp32_precision = wanted
    try:
        with torch.autocast(device_type=device.type, enabled=False):
            yield
    finally:
        if change:
            matmul.fp32_precision = before


def _length(part: slice) -> int:
    return part.stop - part.start
