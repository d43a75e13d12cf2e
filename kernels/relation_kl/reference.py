"""The oracle: dense, follows the definition, gradients by autograd; memory is tokens squared.

Shape suffixes: b batch, h heads, t tokens (rows), d head size. Low precision is computed in
float32; float32 and float64 are computed in their own precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .contract import Scales, Visibility


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
        attention_rows(student, student, teacher, teacher, scale, visibility, allow_tf32=allow_tf32)
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
    """KL by row of attention (`kernels.relation_kl.contract.Implementation`).

    Raises:
        RuntimeError: torch's own setting lets float32 matrix products lose precision and
            ``allow_tf32`` is false: plain autograd would follow that setting.
    """
    if not allow_tf32:
        _require_ieee_products(q_student.device)
    with torch.autocast(device_type=q_student.device.type, enabled=False):
        visible_b1tt = _visible(visibility, q_student)
        student_bhtt = _log_probabilities(q_student, k_student, scales.student, visible_b1tt)
        teacher_bhtt = _log_probabilities(q_teacher, k_teacher, scales.teacher, visible_b1tt)
        gap_bhtt = (teacher_bhtt - student_bhtt).masked_fill(~visible_b1tt, 0.0)
        return (teacher_bhtt.exp() * gap_bhtt).sum(dim=-1)


def _visible(visibility: Visibility, x_bhtd: Tensor) -> Tensor:
    """``[batch or 1, 1, tokens, tokens]`` bool: may row i see column j?"""
    tokens = x_bhtd.shape[2]
    i = torch.arange(tokens, device=x_bhtd.device)[:, None]
    j = torch.arange(tokens, device=x_bhtd.device)[None, :]
    visible = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=x_bhtd.device)
    if visibility.causal:
        visible = visible & (j <= i)
    if visibility.window is not None:
        visible = visible & (i - j < visibility.window)
    if visibility.segment_ids is not None:
        segment = visibility.segment_ids
        visible = visible & (segment[:, None, :, None] == segment[:, None, None, :])
    if visibility.key_mask is not None:
        visible = visible & visibility.key_mask[:, None, None, :]
        # A padding row may see nothing, and its softmax would be 0 / 0. Here it sees itself; the
        # caller drops its KL anyway.
        padding = ~visibility.key_mask[:, None, :, None]
        visible = visible | (padding & (i == j))
    return visible


def _log_probabilities(
    q_bhtd: Tensor, k_bhtd: Tensor, scale: float, visible_b1tt: Tensor
) -> Tensor:
    dtype = torch.float64 if q_bhtd.dtype is torch.float64 else torch.float32
    group = q_bhtd.shape[1] // k_bhtd.shape[1]
    k_bhtd = k_bhtd.to(dtype).repeat_interleave(group, dim=1)
    scores_bhtt = scale * (q_bhtd.to(dtype) @ k_bhtd.transpose(-1, -2))
    return scores_bhtt.masked_fill(~visible_b1tt, float("-inf")).log_softmax(dim=-1)


def _require_ieee_products(device: torch.device) -> None:
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    if backend.matmul.fp32_precision not in ("none", "ieee"):
        raise RuntimeError(
            "backend 'reference' follows torch's own precision of float32 matrix products, which "
            f"is '{backend.matmul.fp32_precision}' on '{device.type}': call "
            "torch.set_float32_matmul_precision('highest'), or pass allow_tf32=True"
        )
