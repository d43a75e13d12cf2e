"""The common case on Hopper GPUs: launches `hopper_kernels` for the cases that `supports` accepts.

This is part of the Triton backend, which tries it first (README.md: which kernels run when).
"""

# Kernels and their tuples are typed for their compiler, not for a type checker.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from . import hopper_kernels as kernels
from .contract import Inputs
from .triton_tiles import RowSums, RowWeights

# The most relations of one launch.
MOST_RELATIONS = 3
_HEAD_SIZES = (64, 128)
_DTYPES = (torch.bfloat16, torch.float16)
_TILE = 64
# Tiles that a program owns, by kernel and head size.
_OWN = {
    ("forward", 64): 2,
    ("forward", 128): 3,
    ("backward", 64): kernels.OWN_TILES.value,
    ("backward", 128): kernels.OWN_TILES.value,
}
# Slots of the ring of tiles, by kernel and head size. Shared memory limits them; four suffice.
_SLOTS = {("forward", 64): 4, ("forward", 128): 3, ("backward", 64): 4, ("backward", 128): 3}
# Registers of a thread, where they decide how many programs a multiprocessor runs. Small heads
# spend most time on exponentials. Four warpgroups hide them better than three, and two programs of
# two warpgroups spread them more evenly than one program of four. With large heads a fourth
# warpgroup would leave no room for the ring.
_REGISTERS = {("forward", 64): 80}
# Bytes in the cache for one element of a head and token: both sides, and float32 sums.
_ROW_BYTES = {"forward": 2 + 2, "backward": 2 + 2 + 4}
_CACHE_SHARE = 0.8
_LOG2_E = math.log2(math.e)
# The copy engine's coordinates are 32-bit, its addresses and strides multiples of 16 bytes.
_MOST_ROWS = 2**31 - 2**10
_ALIGNMENT = 16


def supports(inputs: Inputs) -> bool:
    """Whether these kernels support a set of relations: alike, causal and without masks."""
    students, teachers, segment_ids, key_mask, *_ = inputs
    first, window = students[0], inputs.window
    if segment_ids is not None or key_mask is not None or not inputs.causal:
        return False
    # A window that hides nothing counts as none.
    if window is not None and window < first.shape[2]:
        return False
    if len(students) > MOST_RELATIONS or first.dtype not in _DTYPES:
        return False
    return all(
        x.dtype is first.dtype and x.shape[3] == first.shape[3] in _HEAD_SIZES and _view(x)
        for x in (*students, *teachers)
    )


def forward(inputs: Inputs, results: RowSums) -> None:
    """Writes the row sums of all relations' heads, ``[batch, heads, tokens]``.

    A row may have a score that exceeds its score with itself by 2^6 or more. Its sum is then 2^60
    or more, or not finite, and another kernel must compute the row again.
    """
    call = _Call(inputs, "forward")
    kernels.forward_kernel[(call.programs,)](
        *call.descriptors,
        call.relations,
        results,
        call.row_heads,
        call.heads,
        call.tokens,
        call.together,
        OWN=call.own,
        R=len(inputs.students),
        D=call.head_size,
        SLOTS=call.slots,
        num_warps=4,
        maxnreg=_REGISTERS.get(("forward", call.head_size)),
    )


def backward(
    inputs: Inputs, weights: RowWeights, units: Tensor, gradients: Sequence[Tensor]
) -> None:
    """Writes the students' gradients.

    Args:
        weights: one per row, ``[batch, heads, tokens]``, contiguous.
        units: ``[batch * heads]``, the factors that the weights were divided by.
        gradients: tensors of the students' shapes, written here.
    """
    call = _Call(inputs, "backward")
    tiles = -(-call.tokens // _TILE)
    sums = weights.student_peak.new_empty(call.row_heads * tiles * _TILE, call.head_size)
    layout = gl.NVMMASharedLayout(128, 32, rank=2)
    width = kernels.PART.value
    count = call.row_heads * tiles * (call.head_size // width) * kernels.COUNTER_STEP.value
    counters = torch.zeros(count, dtype=torch.int32, device=sums.device)
    kernels.backward_kernel[(call.programs,)](
        *call.descriptors,
        TensorDescriptor.from_tensor(sums, [_TILE, width], layout),
        sums,
        call.relations,
        tuple(kernels.Gradient(x, *x.stride()[:3]) for x in gradients),
        weights,
        units,
        counters,
        call.row_heads,
        call.heads,
        call.tokens,
        call.together,
        R=len(inputs.students),
        D=call.head_size,
        SLOTS=call.slots,
        num_warps=4,
    )


class _Call:
    """The arguments of a launch."""

    def __init__(self, inputs: Inputs, kernel: str) -> None:
        students = inputs.students
        first = students[0]
        self.heads = sum(x.shape[1] for x in students)
        self.row_heads = first.shape[0] * self.heads
        self.tokens, self.head_size = first.shape[2], first.shape[3]
        self.own = _OWN[kernel, self.head_size]
        self.slots = _SLOTS[kernel, self.head_size]
        blocks = -(-self.tokens // (self.own * _TILE))
        self.programs = self.row_heads * blocks
        # The number of heads whose rows (and, in the backward, sums) fit the second-level cache.
        row_bytes = self.head_size * _ROW_BYTES[kernel]
        most = int(_CACHE_SHARE * _cache_bytes(first.device)) // (self.tokens * row_bytes)
        self.together = _group(self.row_heads, most)
        layout = gl.NVMMASharedLayout(128, 16, rank=2)
        self.descriptors: list[TensorDescriptor | None] = []
        self.relations: tuple[kernels.Relation, ...] = ()
        first_head = 0
        scales = (inputs.student_scales, inputs.teacher_scales)
        sides = zip(students, inputs.teachers, *scales, strict=True)
        for student, teacher, student_scale, teacher_scale in sides:
            places: list[kernels.Rows] = []
            for x in (student, teacher):
                found = _view(x)
                assert found is not None
                matrix, rows = found
                tile = [_TILE, self.head_size]
                self.descriptors.append(TensorDescriptor.from_tensor(matrix, tile, layout))
                places.append(rows)
            self.relations += (
                kernels.Relation(
                    *places, student_scale * _LOG2_E, teacher_scale * _LOG2_E, first_head
                ),
            )
            first_head += student.shape[1]
        self.descriptors += [None, None] * (MOST_RELATIONS - len(students))


def _view(x_bhtd: Tensor) -> tuple[Tensor, kernels.Rows] | None:
    """A matrix over the tensor's memory with one row per token, and the place of heads in it.

    Heads may follow each other by rows (contiguous tensors) or by columns (projections of tokens,
    transposed). None if the strides are of another kind, or the copy engine does not support them.
    """
    batch, heads, tokens, head_dim = x_bhtd.shape
    batch_stride, head_stride, token_stride, last = x_bhtd.stride()
    head_stride = 0 if heads == 1 else head_stride
    step = _ALIGNMENT // x_bhtd.element_size()
    aligned = token_stride % step == 0 == head_stride % step and x_bhtd.data_ptr() % _ALIGNMENT == 0
    if last != 1 or not aligned or token_stride < head_dim:
        return None
    width = (heads - 1) * head_stride + head_dim
    if width <= token_stride and (batch == 1 or batch_stride == tokens * token_stride):
        rows, place = batch * tokens, kernels.Rows(tokens, 0, head_stride)
    elif head_stride == tokens * token_stride and (
        batch == 1 or batch_stride == heads * head_stride
    ):
        rows, width = batch * heads * tokens, head_dim
        place = kernels.Rows(heads * tokens, tokens, 0)
    else:
        return None
    if rows > _MOST_ROWS:
        return None
    return x_bhtd.as_strided((rows, width), (token_stride, 1)), place


def _group(heads: int, most: int) -> int:
    """How many heads run together: at most ``most``, in equal groups unless those would be small.

    A last group of another size leaves multiprocessors idle.
    """
    most = min(max(1, most), heads)
    even = max(size for size in range(1, most + 1) if heads % size == 0)
    return even if 2 * even > most else -(-heads // -(-heads // most))


@cache
def _cache_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size
