"""The reference against the independent formula, in float64: both are exact to rounding."""

from __future__ import annotations

import pytest
import torch

from kernels.relation_kl import attention_kl, relation_kl
from tests.conftest import by_default

LENGTHS = (1, 2, 63, 64, 65, 111, 128, 257)
EVERY_LENGTH = ("causal", "window-segments-padding", "full-segments-padding")


@pytest.mark.parametrize("tokens", LENGTHS)
@by_default(lambda tokens, mask_kind: tokens == 65 or mask_kind in EVERY_LENGTH)
def test_relation_matches_the_formula(tokens, mask_kind, formula, make_masks) -> None:
    torch.manual_seed(tokens)
    heads = 1 + tokens % 9
    student = torch.randn(2, heads, tokens, 8, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, heads, tokens, 5, dtype=torch.float64)
    upstream = torch.randn(2, heads, tokens, dtype=torch.float64)
    masks = make_masks(mask_kind, 2, tokens)
    rows = relation_kl(student, teacher, reduction="none", backend="reference", **masks.arguments())
    rows.backward(upstream)
    expected = formula(student, student, teacher, teacher, masks, upstream=upstream)
    gradient = torch.from_numpy(expected.gradient_q + expected.gradient_k)
    torch.testing.assert_close(rows, torch.from_numpy(expected.rows_bht), rtol=0, atol=1e-12)
    torch.testing.assert_close(student.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [1000, 2049])
def test_long_rows_have_the_kl_of_their_definition(tokens) -> None:
    torch.manual_seed(tokens)
    student, teacher = torch.randn(2, 1, 2, tokens, 8, dtype=torch.float64)
    rows = relation_kl(student, teacher, reduction="none", backend="reference")
    for row in (0, 1, tokens // 2, tokens - 1):
        s, t = (
            (x[..., : row + 1, :] @ x[..., row, :, None] / 8**0.5).squeeze(-1).softmax(-1)
            for x in (student, teacher)
        )
        expected = (t * (t / s).log()).sum(-1)
        torch.testing.assert_close(rows[..., row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
def test_attention_matches_the_formula(key_heads, mask_kind, formula, make_masks) -> None:
    torch.manual_seed(key_heads)
    q_student = torch.randn(2, 6, 40, 8, dtype=torch.float64, requires_grad=True)
    k_student = torch.randn(2, key_heads, 40, 8, dtype=torch.float64, requires_grad=True)
    q_teacher = torch.randn(2, 6, 40, 4, dtype=torch.float64)
    k_teacher = torch.randn(2, 3, 40, 4, dtype=torch.float64)
    tensors = (q_student, k_student, q_teacher, k_teacher)
    upstream = torch.randn(2, 6, 40, dtype=torch.float64)
    masks = make_masks(mask_kind, 2, 40)
    numbers = {"scale": 0.7, "teacher_scale": 0.3, "temperature": 1.7}
    rows = attention_kl(
        *tensors, reduction="none", backend="reference", **numbers, **masks.arguments()
    )
    rows.backward(upstream)
    expected = formula(*tensors, masks, upstream=upstream, **numbers)
    torch.testing.assert_close(rows, torch.from_numpy(expected.rows_bht), rtol=0, atol=1e-12)
    for x, gradient in ((q_student, expected.gradient_q), (k_student, expected.gradient_k)):
        torch.testing.assert_close(x.grad, torch.from_numpy(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", range(1, 34))
def test_head_counts(heads, formula, make_masks) -> None:
    torch.manual_seed(heads)
    student = torch.randn(2, heads, 30, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, heads, 30, 4, dtype=torch.float64)
    upstream = torch.randn(2, heads, 30, dtype=torch.float64)
    masks = make_masks("segments-padding", 2, 30)
    rows = relation_kl(student, teacher, reduction="none", backend="reference", **masks.arguments())
    rows.backward(upstream)
    expected = formula(student, student, teacher, teacher, masks, upstream=upstream)
    gradient = torch.from_numpy(expected.gradient_q + expected.gradient_k)
    torch.testing.assert_close(rows, torch.from_numpy(expected.rows_bht), rtol=0, atol=1e-12)
    torch.testing.assert_close(student.grad, gradient, rtol=0, atol=1e-12)


def test_gradcheck_of_grouped_attention() -> None:
    torch.manual_seed(0)
    q, k, q_teacher, k_teacher = (
        torch.randn(1, heads, 7, 3, dtype=torch.float64) for heads in (4, 2, 4, 1)
    )
    assert torch.autograd.gradcheck(
        lambda q, k: attention_kl(
            q, k, q_teacher, k_teacher, window=3, reduction="none", backend="reference"
        ),
        (q.requires_grad_(), k.requires_grad_()),
    )


def test_gradcheck() -> None:
    torch.manual_seed(0)
    student = torch.randn(1, 2, 7, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 2, 7, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: relation_kl(x, teacher, reduction="none", backend="reference"), (student,)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_float32(dtype) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 3, 50, 16).to(dtype)
    rows = relation_kl(student, teacher, reduction="none", backend="reference")
    wide = relation_kl(student.float(), teacher.float(), reduction="none", backend="reference")
    assert rows.dtype is torch.float32
    assert torch.equal(rows, wide)


def test_refuses_imprecise_products_unless_allowed() -> None:
    x = torch.randn(1, 1, 4, 4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(RuntimeError, match="set_float32_matmul_precision"):
            relation_kl(x, x, backend="reference")
        relation_kl(x, x, backend="reference", allow_tf32=True)
    finally:
        torch.set_float32_matmul_precision(before)
