"""Fused kernels: one pass forward, a deterministic backward, one launch each for all relations.

Operators are registered with torch (``torch.ops.relation_kl.*``), so that compilers and
checkpointing policies see them. The forward outputs a few numbers per row, `triton_tiles.RowSums`,
which a policy may keep instead of running the forward again. The kernels are in `triton_kernels`,
the launch parameters in `launch`. Shape suffixes: b batch, h heads (of all relations of a launch),
t tokens, d head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd import forward_ad
from triton.runtime.interpreter import InterpretedFunction

from . import launch
from . import triton_kernels as kernels
from .contract import Inputs
from .triton_tiles import (
    GRANULE_TOKENS,
    Attention,
    Masks,
    Operand,
    Relation,
    RowSums,
    RowWeights,
    Shape,
)

if TYPE_CHECKING:
    from .contract import Scales, Visibility

# A process may load this file twice: as kernels.relation_kl, from a checkout, and as the installed
# package relation_kl. torch refuses to define an operator twice.
_NAMESPACE = "relation_kl" if __package__ == "kernels.relation_kl" else "relation_kl_installed"
_OPERATORS = getattr(torch.ops, _NAMESPACE)

# The most relations of one launch; more relations take several launches.
_MOST_RELATIONS = 4
# As many programs keep a device busy; a kernel that only checks blocks starts no more.
_BUSY_PROGRAMS = 256
# The operands of heads that run at the same time should fit this part of the second-level cache.
_CACHE_BYTES = 24 * 2**20
_LOG2_E = math.log2(math.e)
# The fields of `RowSums` that are saved: all except the KL.
_SUMS = len(RowSums._fields) - 1


def relation_rows(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    scales: Sequence[Scales],
    visibility: Visibility,
    *,
    allow_tf32: bool,
) -> list[Tensor]:
    """KL by row of each self-relation (`kernels.relation_kl.contract.Implementation`).

    Relations of the same dtypes and padded head sizes share a launch.

    Raises:
        RuntimeError: Triton's interpreter was switched on after Triton had been imported.
        NotImplementedError: a student has a tangent (forward-mode differentiation); the kernels
            compute gradients only.
    """
    _refuse_tangents(students)
    rows: dict[int, Tensor] = {}
    for members in _launches(students, teachers):
        joined_bht, *_ = _OPERATORS.self_rows(
            [students[r] for r in members],
            [teachers[r] for r in members],
            visibility.segment_ids,
            visibility.key_mask,
            [scales[r].student for r in members],
            [scales[r].teacher for r in members],
            visibility.causal,
            visibility.window,
            allow_tf32,
        )
        heads = [students[r].shape[1] for r in members]
        rows.update(zip(members, joined_bht.split(heads, dim=1), strict=True))
    return [rows[r] for r in range(len(students))]


def _launches(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Iterator[list[int]]:
    """Groups of relations that one launch can take, by index: same dtypes and padded head sizes."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for r, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        sizes = [launch.padded_head_size(x.shape[-1]) for x in (student, teacher)]
        alike.setdefault((student.dtype, teacher.dtype, *sizes), []).append(r)
    for members in alike.values():
        for start in range(0, len(members), _MOST_RELATIONS):
            yield members[start : start + _MOST_RELATIONS]


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
    """KL by row of attention (`kernels.relation_kl.contract.Implementation`).

    Raises:
        RuntimeError, NotImplementedError: as `relation_rows`.
    """
    _refuse_tangents((q_student, k_student))
    rows_bht, *_ = _OPERATORS.attention_rows(
        [q_student, k_student],
        [q_teacher, k_teacher],
        visibility.segment_ids,
        visibility.key_mask,
        [scales.student],
        [scales.teacher],
        visibility.causal,
        visibility.window,
        allow_tf32,
    )
    return rows_bht


def _refuse_tangents(tensors: Sequence[Tensor]) -> None:
    """Refuses forward-mode derivatives, which torch would give as 0, as if this were a constant.

    torch.compile traces this function too, where it compiles the differentiation.
    """
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "relation_kl: backend 'triton' has no forward-mode derivative, since its kernels "
            "compute gradients only; use backend='reference', or reverse mode"
        )


# The inputs of each operator, as `Inputs` names them.
_SCHEMA = (
    "Tensor[] students, Tensor[] teachers, Tensor? segment_ids, Tensor? key_mask, "
    "float[] student_scales, float[] teacher_scales, bool causal, int? window, bool allow_tf32"
)


def _self_rows(inputs: Inputs) -> RowSums:
    """Row sums of all relations' heads, one relation after the other."""
    results = _empty_rows(inputs.students)
    call = _Call.of(inputs, inputs.students, inputs.teachers)
    hopper = _hopper(inputs)
    if hopper is not None:
        with torch.cuda.device(call.device):
            hopper.forward(inputs, results)
    # Runs after Hopper's kernel, and computes only the blocks of rows that it left.
    call.launch(
        kernels.self_forward_kernel if hopper is None else kernels.self_forward_again_kernel,
        "self_forward",
        _relations(inputs, inputs.students),
        results,
        looked_at=1 if hopper is None else kernels.MOST_LOOKED_AT,
    )
    return results


def _self_gradients(
    row_gradient_bht: Tensor, sums: Sequence[Tensor], inputs: Inputs
) -> list[Tensor]:
    gradients = [_empty_gradient(student) for student in inputs.students]
    dtype = inputs.students[0].dtype
    weights, units = _weights(row_gradient_bht, sums, row_gradient_bht.shape[1], dtype)
    hopper = _hopper(inputs)
    if hopper is not None:
        with torch.cuda.device(row_gradient_bht.device):
            hopper.backward(inputs, weights, units, gradients)
        return gradients
    call = _Call.of(inputs, inputs.students, inputs.teachers)
    relations = _relations(inputs, gradients)
    call.launch(kernels.self_backward_kernel, "self_backward", relations, weights, units)
    return gradients


def _attention_rows(inputs: Inputs) -> RowSums:
    """Row sums of the query heads."""
    queries = inputs.students[0]
    results = _empty_rows([queries])
    call = _Call.of(inputs, inputs.students[:1], inputs.teachers[:1])
    operands = _attention(inputs, queries)
    call.launch(kernels.attention_forward_kernel, "attention_forward", operands, results)
    return results


def _attention_gradients(
    row_gradient_bht: Tensor, sums: Sequence[Tensor], inputs: Inputs
) -> list[Tensor]:
    queries, keys = inputs.students
    weights, units = _weights(row_gradient_bht, sums, keys.shape[1], queries.dtype)
    call = _Call.of(inputs, inputs.students[:1], inputs.teachers[:1])
    gradients = [_empty_gradient(student) for student in inputs.students]
    call.launch(
        kernels.attention_backward_queries_kernel,
        "attention_backward_queries",
        _attention(inputs, gradients[0]),
        weights,
        units,
    )
    replace(call, heads=keys.shape[1]).launch(
        kernels.attention_backward_keys_kernel,
        "attention_backward_keys",
        _attention(inputs, gradients[1]),
        weights,
        units,
    )
    return gradients


def _register(
    name: str,
    rows: Callable[[Inputs], RowSums],
    gradients: Callable[[Tensor, Sequence[Tensor], Inputs], list[Tensor]],
    with_rows: slice,
) -> None:
    """Registers an operator of torch, and `NAME_backward` for its derivative.

    `torch.library.custom_op` is not used: it checks every argument in every call, which took
    a millisecond, as long as the kernels of a layer.

    Args:
        rows: the operator.
        gradients: of the students, in their dtypes, from the rows' gradient, the saved sums and the
            operator's inputs.
        with_rows: the students whose tokens are rows.
    """
    operator, derivative = f"{_NAMESPACE}::{name}", f"{_NAMESPACE}::{name}_backward"
    outputs = ", ".join("Tensor" for _ in RowSums._fields)
    torch.library.define(operator, f"({_SCHEMA}) -> ({outputs})")
    torch.library.define(derivative, f"(Tensor row_gradient, Tensor[] sums, {_SCHEMA}) -> Tensor[]")
    kinds = ["cpu", "cuda"]
    torch.library.impl(operator, kinds, lambda *inputs: rows(Inputs(*inputs)))
    torch.library.impl(derivative, kinds, lambda g, sums, *rest: gradients(g, sums, Inputs(*rest)))
    torch.library.register_fake(operator, lambda students, *_: _empty_rows(students[with_rows]))
    torch.library.register_fake(
        derivative, lambda g, sums, students, *_: [_empty_gradient(x) for x in students]
    )
    backward = getattr(_OPERATORS, f"{name}_backward")

    def differentiate(ctx: Any, row_gradient_bht: Tensor, *_: None) -> tuple[Any, ...]:
        # Read once: under non-reentrant checkpointing a second reading is an error.
        tensors = ctx.saved_tensors
        sums, (segment_ids, key_mask, *sides) = list(tensors[:_SUMS]), tensors[_SUMS:]
        students, teachers = sides[: ctx.students], sides[ctx.students :]
        masks = (segment_ids, key_mask)
        made = backward(row_gradient_bht, sums, students, teachers, *masks, *ctx.settings)
        return (made, [None] * len(teachers), *[None] * (len(masks) + len(ctx.settings)))

    torch.library.register_autograd(operator, differentiate, setup_context=_save)
    torch.library.register_autograd(derivative, _refuse_second_derivative)


def _save(ctx: Any, inputs: tuple[Any, ...], output: RowSums) -> None:
    students, teachers, segment_ids, key_mask, *settings = inputs
    sums = output[1:]
    ctx.mark_non_differentiable(*sums)
    ctx.set_materialize_grads(False)
    ctx.students, ctx.settings = len(students), settings
    ctx.save_for_backward(*sums, segment_ids, key_mask, *students, *teachers)


def _refuse_second_derivative(ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise NotImplementedError(
        "relation_kl: backend 'triton' has no second derivative; use backend='reference'"
    )


_register("self_rows", _self_rows, _self_gradients, slice(None))
_register("attention_rows", _attention_rows, _attention_gradients, slice(1))


def _hopper(inputs: Inputs) -> Any:
    """The module of Hopper's kernels if they support this case, else None."""
    device = inputs.students[0].device
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return None
    from . import hopper

    return hopper if hopper.supports(inputs) else None


@dataclass(frozen=True)
class _Call:
    """The arguments that all launches of a call share."""

    batch: int
    heads: int
    tokens: int
    device: torch.device
    element_bytes: int
    head_bytes: int
    masks: Masks
    window: int | None
    shape: Shape

    @staticmethod
    def of(inputs: Inputs, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> _Call:
        """``students`` and ``teachers`` are the tensors whose tokens are rows."""
        student, teacher = students[0], teachers[0]
        batch, _, tokens, _ = student.shape
        _check_device(student.device)
        size_s, size_t = (launch.padded_head_size(x.shape[3]) for x in (student, teacher))
        return _Call(
            batch=batch,
            heads=sum(x.shape[1] for x in students),
            tokens=tokens,
            device=student.device,
            element_bytes=max(student.element_size(), teacher.element_size()),
            head_bytes=tokens * (size_s * student.element_size() + size_t * teacher.element_size()),
            masks=_masks(inputs.segment_ids, inputs.key_mask, student),
            # A window that hides nothing would only cost time.
            window=None if inputs.window is None or inputs.window >= tokens else inputs.window,
            shape=Shape(
                causal=inputs.causal,
                block_m=0,
                block_n=0,
                block_ds=size_s,
                block_dt=size_t,
                whole_ds=all(x.shape[3] == size_s for x in students),
                whole_dt=all(x.shape[3] == size_t for x in teachers),
                precision="tf32" if inputs.allow_tf32 else "ieee",
            ),
        )

    def launch(
        self, kernel: Any, name: launch.Kernel, operands: Any, *tensors: Any, looked_at: int = 1
    ) -> None:
        """Starts one program for each block of tokens of each head.

        If each program checks up to ``looked_at`` blocks, it starts the fewest programs that cover
        all blocks, but enough to keep the device busy.
        """
        size = max(self.shape.block_ds, self.shape.block_dt)
        chosen = launch.lookup(launch.ShapeClass(name, size, self.element_bytes), self.device)
        facts = self.shape._replace(block_m=chosen.block_m, block_n=chosen.block_n)
        # Separate arguments, so that the compiler still knows those that a kernel passes on.
        shape = Shape(*(tl.constexpr(fact) for fact in facts))
        together = max(1, min(_CACHE_BYTES // self.head_bytes, self.batch * self.heads))
        programs = self.batch * self.heads * _blocks(self.tokens, chosen.block_m)
        if looked_at > 1:
            programs = max(min(programs, _BUSY_PROGRAMS), _blocks(programs, looked_at))
        _start(
            kernel,
            programs,
            self.device,
            operands,
            self.masks,
            *tensors,
            self.batch,
            self.heads,
            self.tokens,
            self.window,
            together,
            shape,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            # Contraction rounds a score once less than the row's peak. The two then differ by half
            # a unit of the last place, and the exponential of that is not 1. float32 must be exact.
            enable_fp_fusion=self.element_bytes < 4,
        )


def _relations(inputs: Inputs, gradients: Sequence[Tensor]) -> tuple[Relation, ...]:
    relations: list[Relation] = []
    first_head = 0
    for r, student in enumerate(inputs.students):
        relations.append(
            Relation(
                student=_operand(student),
                teacher=_operand(inputs.teachers[r]),
                gradient=_operand(gradients[r]),
                student_scale=inputs.student_scales[r] * _LOG2_E,
                teacher_scale=inputs.teacher_scales[r] * _LOG2_E,
                first_head=first_head,
            )
        )
        first_head += student.shape[1]
    return tuple(relations)


def _operand(x_bhtd: Tensor) -> Operand:
    x_bhtd = x_bhtd if _last_axis_is_contiguous(x_bhtd) else x_bhtd.contiguous()
    batch_stride, head_stride, token_stride, _ = x_bhtd.stride()
    return Operand(x_bhtd, batch_stride, head_stride, token_stride, x_bhtd.shape[3])


def _attention(inputs: Inputs, gradient: Tensor) -> Attention:
    (q_student, k_student), (q_teacher, k_teacher) = inputs.students, inputs.teachers
    return Attention(
        q_student=_operand(q_student),
        k_student=_operand(k_student),
        q_teacher=_operand(q_teacher),
        k_teacher=_operand(k_teacher),
        gradient=_operand(gradient),
        student_scale=inputs.student_scales[0] * _LOG2_E,
        teacher_scale=inputs.teacher_scales[0] * _LOG2_E,
        student_group=q_student.shape[1] // k_student.shape[1],
        teacher_group=q_teacher.shape[1] // k_teacher.shape[1],
    )


def _masks(segment_ids: Tensor | None, key_mask: Tensor | None, x_bhtd: Tensor) -> Masks:
    """The masks in the form that kernels read, with the reach of each granule of tokens."""
    if segment_ids is None and key_mask is None:
        return Masks(None, None, None)
    segments = None if segment_ids is None else segment_ids.contiguous()
    real = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    batch, _, tokens, _ = x_bhtd.shape
    granules = _blocks(tokens, GRANULE_TOKENS)
    spans = x_bhtd.new_empty(batch, 3, granules, dtype=torch.int64)
    reach = x_bhtd.new_empty(batch, granules, 4, dtype=torch.int32)
    programs, device = batch * granules, x_bhtd.device
    _start(kernels.spans_kernel, programs, device, spans, segments, real, tokens, granules)
    _start(kernels.reach_kernel, programs, device, reach, spans, tokens, granules, CHUNK=128)
    return Masks(segments, real, reach)


def _empty_rows(students: Sequence[Tensor]) -> RowSums:
    first = students[0]
    shape = (first.shape[0], sum(x.shape[1] for x in students), first.shape[2])
    return RowSums(*(first.new_empty(shape, dtype=torch.float32) for _ in RowSums._fields))


def _empty_gradient(x_bhtd: Tensor) -> Tensor:
    """Has the tensor's strides, so that the backward of earlier operators needs no copy."""
    if _last_axis_is_contiguous(x_bhtd):
        return torch.empty_like(x_bhtd)
    return torch.empty_like(x_bhtd, memory_format=torch.contiguous_format)


def _last_axis_is_contiguous(x_bhtd: Tensor) -> bool:
    return x_bhtd.stride(3) == 1 or x_bhtd.shape[3] == 1


def _weights(
    row_gradient_bht: Tensor, sums: Sequence[Tensor], groups: int, dtype: torch.dtype
) -> tuple[RowWeights, Tensor]:
    """Scaled upstream gradients over the rows' sums, and the unit divided out of each head group.

    Units are ``[batch * groups]``. The gradient of a mean is one over the number of rows, which
    would underflow in half-precision products. So scaled gradients are at most 1, or at most 2^13
    in float16, which is as exact and leaves more room for small probabilities.
    """
    student_peak, student_sum, teacher_peak, teacher_sum = sums
    weights = RowWeights(
        student_peak, torch.empty_like(student_sum), teacher_peak, torch.empty_like(teacher_sum)
    )
    batch, heads, tokens = row_gradient_bht.shape
    units = student_sum.new_empty(batch * groups)
    _start(
        kernels.weigh_kernel,
        batch * groups,
        row_gradient_bht.device,
        row_gradient_bht,
        *row_gradient_bht.stride(),
        student_sum,
        teacher_sum,
        weights.student_weight,
        weights.teacher_weight,
        units,
        groups,
        heads // groups,
        tokens,
        HEADROOM=2.0**13 if dtype is torch.float16 else 1.0,
        BLOCK=min(4096, max(16, 1 << (heads // groups * tokens - 1).bit_length())),
    )
    return weights, units


def _check_device(device: torch.device) -> None:
    # Triton chooses the interpreter when a function is defined, for its own ones at its import.
    functions: tuple[object, ...] = (tl.sum, kernels.self_forward_kernel)
    interpreted = all(isinstance(function, InterpretedFunction) for function in functions)
    if device.type != "cuda" and not interpreted:
        raise RuntimeError(
            f"backend 'triton' cannot run on '{device}': Triton was imported before "
            "TRITON_INTERPRET=1 was set, so its kernels are not interpreted"
        )


def _blocks(tokens: int, size: int) -> int:
    return -(-tokens // size)


def _start(
    kernel: Any, programs: int, device: torch.device, *arguments: Any, **options: Any
) -> None:
    """Launches on the tensors' device, which may differ from the current device."""
    context = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with context:
        kernel[(programs,)](*arguments, **options)
