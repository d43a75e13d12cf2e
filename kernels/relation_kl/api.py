"""The public functions: they validate, choose an implementation and reduce its rows.

Shape suffixes: b batch, h heads, t tokens, d head size. Implementations are modules of this
package that follow `contract.Implementation`. They are imported when first used and never import
each other. They return one KL per row. This module handles padding and reduction for all of them,
in plain autograd.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .contract import Implementation, Scales, Visibility

Backend = Literal["auto", "triton", "chunked", "reference"]
Reduction = Literal["mean", "sum", "none"]

_BACKENDS = ("auto", "triton", "chunked", "reference")
_REDUCTIONS = ("mean", "sum", "none")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TRITON_LARGEST_HEAD = 256
# Looked up once, because torch.compile cannot trace the search.
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None
# Operators take 64-bit integers.
_MOST_WINDOW = 2**63
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def relation_kl(
    student_bhtd: Tensor,
    teacher_bhtd: Tensor,
    *,
    scale: float | None = None,
    teacher_scale: float | None = None,
    causal: bool = True,
    segment_ids: Tensor | None = None,
    key_mask: Tensor | None = None,
    window: int | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    allow_tf32: bool = False,
) -> Tensor:
    """KL divergence between two self-relations, ``KL(softmax(T T^T) || softmax(S S^T))`` by row.

    This is the loss of LinearARD (2604.00004) for one of q, k, v. MiniLMv2 (2012.15828) applies it
    to regrouped heads (`split_relation_heads`). Scores are ``scale * X X^T / temperature``. The
    result is *not* multiplied by ``temperature ** 2``, unlike some distillation losses.

    Args:
        student_bhtd: ``[batch, heads, tokens, head_dim]``, any strides; float32, bfloat16 or
            float16 (float64 in the ``chunked`` and ``reference`` backends).
        teacher_bhtd: the same shape; head size and dtype may differ. It gets no gradient.
        scale: factor of the student's products; ``1 / sqrt(head_dim)`` by default.
        teacher_scale: factor of the teacher's products; ``1 / sqrt(its head_dim)`` by default.
        causal: a row sees no later token.
        segment_ids: ``[batch, tokens]`` integers; a row sees only its own segment.
        key_mask: ``[batch, tokens]`` bool, true at real tokens. No row sees padding. Padding rows
            have KL 0 and gradient 0. Padding must hold finite values.
        window: a row sees the ``window`` latest tokens, itself included; causal only.
        temperature: divides both sides' scores.
        reduction: ``mean`` over real rows and heads (0 where every row is padding), ``sum``, or
            ``none``.
        backend: ``auto`` takes ``triton`` on a CUDA device and ``chunked`` elsewhere; a backend
            chosen by name runs or raises.
        allow_tf32: lets float32 inputs multiply in TF32 on devices that have it.

    Returns:
        A scalar, or ``[batch, heads, tokens]`` for ``none``; float32 (float64 for float64).

    Raises:
        ValueError: an argument is not as above; the message names it.
        RuntimeError: the chosen backend cannot run here.
    """
    visible = Visibility(causal, window, segment_ids, key_mask)
    options = _Options(scale, teacher_scale, visible, temperature, reduction, backend, allow_tf32)
    names = [("student_bhtd", "teacher_bhtd")]
    return _relation_losses([student_bhtd], [teacher_bhtd], names, options)[0]


def relation_kl_set(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[float],
    *,
    scale: float | None = None,
    teacher_scale: float | None = None,
    causal: bool = True,
    segment_ids: Tensor | None = None,
    key_mask: Tensor | None = None,
    window: int | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of `relation_kl` over several relations, such as the q, k and v of a layer.

    This is LinearARD's loss of a layer (2604.00004).

    Each relation is reduced over its own rows and heads, so grouped key and value heads weigh as
    much as query heads.

    Args:
        students: R tensors ``[batch, heads_r, tokens, head_dim_r]`` of one batch, length and
            device.
        teachers: R tensors; each matches its student as in `relation_kl`.
        weights: R finite numbers, none negative.
        reduction: ``mean`` or ``sum``.

    The other arguments and the errors are those of `relation_kl`, the same for all relations.

    Returns:
        The weighted loss, a scalar, and the relations' own losses, unweighted and detached,
        ``[R]``; float32 (float64 where a relation is float64).
    """
    _check_set(students, teachers, weights, reduction)
    visible = Visibility(causal, window, segment_ids, key_mask)
    options = _Options(scale, teacher_scale, visible, temperature, reduction, backend, allow_tf32)
    names = [(f"students[{r}]", f"teachers[{r}]") for r in range(len(students))]
    losses = _relation_losses(students, teachers, names, options)
    weighted = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()
    return weighted, torch.stack([loss.detach() for loss in losses])


def attention_kl(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    *,
    scale: float | None = None,
    teacher_scale: float | None = None,
    causal: bool = True,
    segment_ids: Tensor | None = None,
    key_mask: Tensor | None = None,
    window: int | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
    allow_tf32: bool = False,
) -> Tensor:
    """KL divergence between two models' attention rows, ``softmax(Q K^T)`` (MiniLM, 2002.10957).

    Args:
        q_student: ``[batch, heads, tokens, head_dim]``.
        k_student: ``[batch, key_heads, tokens, head_dim]``; ``key_heads`` divides ``heads``, and
            query head ``h`` uses key head ``h // (heads // key_heads)``.
        q_teacher: as many heads as ``q_student``; the head size may differ.
        k_teacher: its key heads may differ in number from the student's.

    The other arguments, the value and the errors are those of `relation_kl`. Gradients flow to
    ``q_student`` and ``k_student``, the latter summed over the group.
    """
    _check_attention_shapes(q_student, k_student, q_teacher, k_teacher)
    visible = Visibility(causal, window, segment_ids, key_mask)
    options = _Options(scale, teacher_scale, visible, temperature, reduction, backend, allow_tf32)
    options.check(q_student)
    tensors = [q_student, k_student, q_teacher, k_teacher]
    rows_bht = _implementation(backend, tensors).attention_rows(
        q_student,
        k_student,
        q_teacher.detach(),
        k_teacher.detach(),
        options.scales(q_student, q_teacher),
        visible,
        allow_tf32=allow_tf32,
    )
    return options.reduced(rows_bht)


def split_relation_heads(x_bhtd: Tensor, relation_heads: int) -> Tensor:
    """Regroups heads into relation heads, as MiniLMv2 does: concatenates all, then splits again.

    So two models that differ in heads and width can be compared head by head.

    Args:
        x_bhtd: ``[batch, heads, tokens, head_dim]``.
        relation_heads: how many heads to split into; divides ``heads * head_dim``.

    Returns:
        ``[batch, relation_heads, tokens, heads * head_dim / relation_heads]``, differentiable.

    Raises:
        ValueError: ``x_bhtd`` is not 4-dimensional, or ``relation_heads`` does not divide.
    """
    _check_tensor("x_bhtd", x_bhtd)
    batch, heads, tokens, head_dim = x_bhtd.shape
    width = heads * head_dim
    if not _is_int(relation_heads) or relation_heads < 1 or width % relation_heads:
        raise ValueError(
            f"relation_heads: got {relation_heads!r}; it must be a positive integer that divides "
            f"heads * head_dim = {heads} * {head_dim} = {width}"
        )
    concatenated_btw = x_bhtd.transpose(1, 2).reshape(batch, tokens, width)
    return concatenated_btw.unflatten(-1, (relation_heads, -1)).transpose(1, 2)


class _Options(NamedTuple):
    """What the public functions have in common; the arguments are those of `relation_kl`."""

    scale: float | None
    teacher_scale: float | None
    visibility: Visibility
    temperature: float
    reduction: Reduction
    backend: Backend
    allow_tf32: bool

    def check(self, x_bhtd: Tensor) -> None:
        """Refuses what does not depend on the heads, for tensors of this batch and length."""
        _check_visibility(self.visibility, x_bhtd)
        if self.reduction not in _REDUCTIONS:
            raise ValueError(
                f"reduction: got {self.reduction!r}; it must be one of {', '.join(_REDUCTIONS)}"
            )
        _check_flag("allow_tf32", self.allow_tf32)

    def scales(self, student: Tensor, teacher: Tensor) -> Scales:
        _check_positive("temperature", self.temperature)
        sides = (("scale", self.scale, student), ("teacher_scale", self.teacher_scale, teacher))
        factors: list[float] = []
        for name, value, side in sides:
            if value is not None:
                _check_positive(name, value)
            factor = side.shape[-1] ** -0.5 if value is None else float(value)
            factors.append(factor / float(self.temperature))
            if not _is_finite_number(factors[-1]):
                raise ValueError(
                    f"{name}: got {value!r} with temperature={self.temperature!r}; their ratio "
                    "must be finite"
                )
        return Scales(*factors)

    def reduced(self, rows_bht: Tensor) -> Tensor:
        key_mask = self.visibility.key_mask
        if key_mask is not None:
            rows_bht = rows_bht.masked_fill(~key_mask[:, None, :], 0.0)
        if self.reduction == "none":
            return rows_bht
        if self.reduction == "sum":
            return rows_bht.sum()
        if key_mask is None:
            return rows_bht.mean()
        real_rows = key_mask.sum() * rows_bht.shape[1]
        return rows_bht.sum() / real_rows.clamp_min(1)


def _relation_losses(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    names: Sequence[tuple[str, str]],
    options: _Options,
) -> list[Tensor]:
    for (student_name, teacher_name), student, teacher in zip(
        names, students, teachers, strict=True
    ):
        _check_tensor(student_name, student)
        _check_tensor(teacher_name, teacher)
        _check_agreement(student_name, student, teacher_name, teacher, dims=(0, 1, 2))
        _check_agreement(names[0][0], students[0], student_name, student, dims=(0, 2))
    _check_data(names[0][0], students[0])
    options.check(students[0])
    scales = [options.scales(*pair) for pair in zip(students, teachers, strict=True)]
    rows = _implementation(options.backend, [*students, *teachers]).relation_rows(
        students,
        [teacher.detach() for teacher in teachers],
        scales,
        options.visibility,
        allow_tf32=options.allow_tf32,
    )
    return [options.reduced(rows_bht) for rows_bht in rows]


def _implementation(backend: Backend, tensors: Sequence[Tensor]) -> Implementation:
    if backend not in _BACKENDS:
        raise ValueError(f"backend: got {backend!r}; it must be one of {', '.join(_BACKENDS)}")
    if backend == "auto":
        fused = tensors[0].is_cuda and _triton_obstacle(tensors) is None
        return _module("triton" if fused else "chunked")
    if backend == "triton" and (obstacle := _triton_obstacle(tensors)) is not None:
        raise RuntimeError(f"backend 'triton' cannot run here: {obstacle}")
    return _module(backend)


def _module(name: str) -> Implementation:
    # Import statements, not importlib, because torch.compile can trace these.
    if name == "triton":
        from . import triton

        return triton
    if name == "chunked":
        from . import chunked

        return chunked
    from . import reference

    return reference


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, which needs no GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def _triton_obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Why the Triton backend cannot take these tensors; None if it can."""
    for x in tensors:
        if x.dtype is torch.float64:
            return "it does not take float64; use 'chunked' or 'reference'"
        if x.shape[-1] > _TRITON_LARGEST_HEAD:
            return (
                f"it takes head sizes to {_TRITON_LARGEST_HEAD}, and got head_dim = "
                f"{x.shape[-1]}; use 'chunked'"
            )
    device = tensors[0].device
    if device.type != "cuda" and not interpreted():
        return f"the tensors are on '{device}', not on a CUDA device, and TRITON_INTERPRET is off"
    if interpreted() and any(x.dtype is torch.bfloat16 for x in tensors):
        return "Triton's interpreter multiplies bfloat16 wrongly; use float32 or float16 there"
    if not _TRITON_IS_INSTALLED:
        return "the package 'triton' is not installed"
    return None


def _check_strided(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: got {type(x).__name__}; it must be a tensor")
    if x.layout is not torch.strided:
        raise ValueError(f"{name}: got layout {x.layout}; it must be torch.strided")


def _check_tensor(name: str, x: Tensor) -> None:
    _check_strided(name, x)
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(
            f"{name}: got shape {list(x.shape)}; it must be [batch, heads, tokens, head_dim], "
            "none of them 0"
        )
    if x.dtype not in _DTYPES:
        allowed = ", ".join(_dtype_name(dtype) for dtype in _DTYPES)
        raise ValueError(f"{name}: got dtype {_dtype_name(x.dtype)}; it must be one of {allowed}")


def _check_agreement(
    name: str, x: Tensor, other_name: str, other: Tensor, *, dims: Sequence[int]
) -> None:
    """Refuses two tensors that differ in the given dimensions, or in their device."""
    labels = ("batch", "heads", "tokens", "head_dim")
    for dim in dims:
        if x.shape[dim] != other.shape[dim]:
            raise ValueError(
                f"{other_name}: got {labels[dim]} = {other.shape[dim]} (shape "
                f"{list(other.shape)}); it must be {x.shape[dim]}, as in {name} (shape "
                f"{list(x.shape)})"
            )
    if x.device != other.device:
        raise ValueError(
            f"{other_name}: got device {other.device}; it must be {x.device}, as that of {name}"
        )


def _check_data(name: str, x: Tensor) -> None:
    if x.is_meta:
        raise ValueError(f"{name}: got device {x.device}; it must be one that holds data")


def _check_attention_shapes(
    q_student: Tensor, k_student: Tensor, q_teacher: Tensor, k_teacher: Tensor
) -> None:
    sides = {"student": (q_student, k_student), "teacher": (q_teacher, k_teacher)}
    for side, (q, k) in sides.items():
        _check_tensor(f"q_{side}", q)
        _check_tensor(f"k_{side}", k)
        _check_agreement(f"q_{side}", q, f"k_{side}", k, dims=(0, 2, 3))
        if q.shape[1] % k.shape[1]:
            raise ValueError(
                f"k_{side}: got {k.shape[1]} heads; their number must divide that of q_{side}, "
                f"{q.shape[1]}"
            )
        if q.dtype is not k.dtype:
            raise ValueError(
                f"k_{side}: got dtype {_dtype_name(k.dtype)}; it must be that of q_{side}, "
                f"{_dtype_name(q.dtype)}"
            )
    _check_agreement("q_student", q_student, "q_teacher", q_teacher, dims=(0, 1, 2))
    _check_data("q_student", q_student)


def _check_set(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[float],
    reduction: Reduction,
) -> None:
    for name, values in (("students", students), ("teachers", teachers), ("weights", weights)):
        if not hasattr(values, "__len__"):
            raise ValueError(
                f"{name}: got {type(values).__name__}; it must be a sequence, one entry a relation"
            )
    if len(students) == 0:
        raise ValueError("students: got none; give at least one relation")
    for name, values in (("teachers", teachers), ("weights", weights)):
        if len(values) != len(students):
            raise ValueError(
                f"{name}: got {len(values)}; it must have as many as students, {len(students)}"
            )
    for r, weight in enumerate(weights):
        if not _is_finite_number(weight) or weight < 0:
            raise ValueError(f"weights[{r}]: got {weight!r}; it must be a finite number >= 0")
    if reduction == "none":
        raise ValueError(
            "reduction: got 'none'; a set has one weighted loss, so it must be 'mean' or 'sum' "
            "(relation_kl gives the rows of one relation)"
        )


def _check_visibility(visibility: Visibility, x: Tensor) -> None:
    window, causal = visibility.window, visibility.causal
    _check_flag("causal", causal)
    if window is not None:
        if not _is_int(window) or not 1 <= window < _MOST_WINDOW:
            raise ValueError(
                f"window: got {window!r}; it must be None or an integer >= 1 (and below 2**63)"
            )
        if not causal:
            raise ValueError(f"window: got {window} with causal=False; a window needs causal=True")
    if visibility.segment_ids is not None:
        _check_mask("segment_ids", visibility.segment_ids, x, _INTEGERS, "an integer dtype")
    if visibility.key_mask is not None:
        _check_mask("key_mask", visibility.key_mask, x, (torch.bool,), "bool")


def _check_mask(
    name: str, mask: Tensor, x: Tensor, dtypes: Sequence[torch.dtype], allowed: str
) -> None:
    _check_strided(name, mask)
    expected = [x.shape[0], x.shape[2]]
    if list(mask.shape) != expected:
        raise ValueError(
            f"{name}: got shape {list(mask.shape)}; it must be [batch, tokens] = {expected}"
        )
    if mask.dtype not in dtypes:
        raise ValueError(f"{name}: got dtype {_dtype_name(mask.dtype)}; it must be {allowed}")
    if mask.device != x.device:
        raise ValueError(f"{name}: got device {mask.device}; it must be {x.device}, as the inputs'")


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}; it must be True or False")


def _check_positive(name: str, value: float) -> None:
    if not _is_finite_number(value) or value <= 0:
        raise ValueError(f"{name}: got {value!r}; it must be a finite number > 0")


def _is_finite_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        # math.isfinite is not used: torch.compile cannot trace it where the number may change.
        return -math.inf < float(value) < math.inf
    except OverflowError:
        return False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
