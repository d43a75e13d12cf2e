"""Hopper's own kernels: which tensors they take (anywhere), what they compute (on such a GPU)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.relation_kl import hopper, relation_kl, relation_kl_set
from kernels.relation_kl.contract import Inputs

on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
    reason="needs a Hopper GPU (compute capability 9.0)",
)
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "heads-in-columns": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "padded-rows": lambda x: torch.nn.functional.pad(x, (0, 8))[..., : x.shape[-1]],
}


def taken(x: Tensor, *, causal: bool = True, window: int | None = None, masked: bool = False):
    return supported(1, x, causal=causal, window=window, masked=masked)


def supported(relations: int, x: Tensor, *, causal: bool, window: int | None, masked: bool):
    sides, scales = [x] * relations, [1.0] * relations
    mask = torch.ones(1, dtype=torch.bool) if masked else None
    inputs = Inputs(sides, sides, None, mask, scales, scales, causal, window, allow_tf32=False)
    return hopper.supports(inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_view_finds_every_token_of_every_head(layout, heads, batch) -> None:
    x = LAYOUTS[layout](torch.randn(batch, heads, 5, 64).bfloat16())
    found = hopper._view(x)
    assert found is not None
    matrix, rows = found
    for b in range(batch):
        for h in range(heads):
            first = b * rows.batch_rows + h * rows.head_rows
            column = h * rows.head_columns
            part = matrix[first : first + 5, column : column + 64]
            assert torch.equal(part, x[b, h])


def test_what_is_taken_and_what_is_left_to_the_general_kernels() -> None:
    x = torch.randn(2, 3, 70, 64).bfloat16()
    assert taken(x)
    assert taken(x, window=70)
    assert not taken(x, window=69)
    assert not taken(x, causal=False)
    assert not taken(x, masked=True)
    assert not taken(x.float())
    assert not taken(torch.randn(2, 3, 70, 80).bfloat16())
    # Strides that no matrix has, and rows that do not begin at multiples of 16 bytes.
    assert not taken(torch.randn(3, 2, 70, 64).bfloat16().transpose(0, 1))
    assert not taken(torch.randn(1, 1, 70, 65).bfloat16()[..., :64])
    assert not supported(4, x, causal=True, window=None, masked=False)


def dense(student: Tensor, teacher: Tensor, upstream: Tensor, dtype: torch.dtype):
    x, y = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    tokens, scale = x.shape[2], 1 / math.sqrt(x.shape[3])
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
    s, t = ((scale * (z @ z.mT)).masked_fill(~seen, -math.inf).log_softmax(-1) for z in (x, y))
    rows = (t.exp() * (t - s).masked_fill(~seen, 0)).sum(-1)
    (gradient,) = torch.autograd.grad((rows * upstream).sum(), x)
    return rows.detach(), gradient


def family(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda")
    if name == "large":
        factor = math.sqrt(300 / math.sqrt(shape[3]))
        return x * factor, y * factor
    if name == "near":
        return x, x * (1 + 1e-4 * y)
    if name == "one-hot":
        hot = [torch.randint(shape[3], shape[:3], device="cuda") for _ in range(2)]
        x, y = (30 * torch.nn.functional.one_hot(h, shape[3]).float() for h in hot)
    if name == "uneven":
        # Norms so different that scores exceed those with themselves by more than float32 holds.
        spread = torch.exp(1.5 * torch.randn(*shape[:3], 1, device="cuda"))
        return x * spread, y * spread
    return x, y


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("name", ["normal", "large", "near", "one-hot", "uneven"])
@pytest.mark.parametrize("shape", [(2, 3, 1000, 128), (1, 5, 777, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_dense_float32(name, shape, dtype) -> None:
    torch.manual_seed(0)
    student, teacher = (z.to(dtype) for z in family(name, shape))
    student.requires_grad_()
    upstream = torch.rand(shape[:3], device="cuda")
    rows = relation_kl(student, teacher, reduction="none", backend="triton")
    (gradient,) = torch.autograd.grad((rows * upstream).sum(), student)
    truth, true_gradient = dense(student, teacher, upstream, torch.float64)
    plain, _ = dense(student, teacher, upstream, torch.float32)
    assert rows.isfinite().all()
    assert gradient.isfinite().all()
    error, allowed = ((z - truth).square().mean().sqrt() for z in (rows, plain))
    assert error < 2 * allowed + 1e-6
    if name != "large":  # there the gradient is 0 but for rounding
        # G and the result are rounded to the inputs' dtype, each once.
        relative = (gradient - true_gradient).norm() / true_gradient.norm()
        assert relative < (2 if dtype is torch.bfloat16 else 20) * torch.finfo(dtype).eps


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 111, 128, 129, 192, 1000, 2049])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_lengths(tokens, head_dim) -> None:
    torch.manual_seed(tokens)
    student = torch.randn(2, 3, tokens, head_dim, device="cuda").bfloat16().requires_grad_()
    teacher = torch.randn(2, 3, tokens, head_dim, device="cuda").bfloat16()
    upstream = torch.rand(2, 3, tokens, device="cuda")
    rows = relation_kl(student, teacher, reduction="none", backend="triton")
    (gradient,) = torch.autograd.grad((rows * upstream).sum(), student)
    truth, true_gradient = dense(student, teacher, upstream, torch.float64)
    assert (rows - truth).abs().max() < 1e-5
    assert (gradient - true_gradient).norm() <= 4e-3 * true_gradient.norm() + 1e-6


@pytest.mark.gpu
@on_hopper
def test_a_set_equals_its_relations_and_repeats_bit_for_bit() -> None:
    torch.manual_seed(0)
    heads = (6, 2, 3)
    students = [torch.randn(2, h, 700, 128, device="cuda").bfloat16() for h in heads]
    teachers = [torch.randn_like(x) for x in students]
    for x in students:
        x.requires_grad_()
    weights = [1.0, 2.0, 0.5]
    first = None
    for _ in range(100):
        loss, each = relation_kl_set(students, teachers, weights, backend="triton")
        results = [loss, each, *torch.autograd.grad(loss, students)]
        first = first or results
        assert all(torch.equal(x, y) for x, y in zip(results, first, strict=True))
    assert first is not None
    for r, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        alone = relation_kl(student, teacher, backend="triton")
        (gradient,) = torch.autograd.grad(weights[r] * alone, student)
        torch.testing.assert_close(alone, first[1][r], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, first[2 + r], rtol=1e-2, atol=1e-9)


@pytest.mark.gpu
@on_hopper
def test_heads_in_columns_need_no_copy_and_change_no_bit() -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(2, 300, 6, 128, device="cuda").bfloat16() for _ in range(2))
    results = []
    for copy in (False, True):
        x, y = student.transpose(1, 2), teacher.transpose(1, 2)
        x, y = (x.contiguous(), y.contiguous()) if copy else (x, y)
        x.requires_grad_()
        loss = relation_kl(x, y, backend="triton")
        results.append((loss, *torch.autograd.grad(loss, x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
