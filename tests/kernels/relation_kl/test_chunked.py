"""The chunked backend: exact in float64, as precise as dense torch below, linear in memory.

A bound in low precision is derived, not guessed: the error against float64 of the dense reference
at the same inputs, times a small factor for a different order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from kernels.relation_kl import attention_kl, relation_kl
from tests.conftest import by_default

LENGTHS = (1, 2, 63, 64, 65, 111, 128, 257)
EVERY_LENGTH = ("causal", "window-segments-padding", "full-segments-padding")
ORDER_OF_SUMMATION = 4.0  # how much more error than the dense reference's is accepted


def randn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def exact(*shape: int, grad: bool = False) -> Tensor:
    return randn(*shape, dtype=torch.float64, grad=grad)


def rows_and_gradient(
    student: Tensor, teacher: Tensor, upstream: Tensor, backend: str, **options
) -> tuple[Tensor, Tensor]:
    rows = relation_kl(student, teacher, reduction="none", backend=backend, **options)
    (gradient,) = torch.autograd.grad(rows, student, upstream.to(rows.dtype))
    return rows.detach().double(), gradient.double()


@pytest.mark.parametrize("tokens", LENGTHS)
@by_default(lambda tokens, mask_kind: tokens == 65 or mask_kind in EVERY_LENGTH)
def test_relation_matches_the_formula(tokens, mask_kind, formula, make_masks, small_chunks) -> None:
    torch.manual_seed(tokens)
    heads = 1 + tokens % 9
    student = exact(2, heads, tokens, 8, grad=True)
    teacher = exact(2, heads, tokens, 5)
    upstream = exact(2, heads, tokens)
    masks = make_masks(mask_kind, 2, tokens)
    rows, gradient = rows_and_gradient(student, teacher, upstream, "chunked", **masks.arguments())
    expected = formula(student, student, teacher, teacher, masks, upstream=upstream)
    whole = torch.from_numpy(expected.gradient_q + expected.gradient_k)
    torch.testing.assert_close(rows, torch.from_numpy(expected.rows_bht), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [1000, 2049])
@pytest.mark.parametrize("masks", ["causal", "window-segments-padding", "full"])
@by_default(lambda tokens, masks: tokens == 1000 or masks == "window-segments-padding")
def test_long_rows_match_the_reference(tokens, masks, make_masks) -> None:
    torch.manual_seed(tokens)
    student, teacher = exact(1, 2, tokens, 8, grad=True), exact(1, 2, tokens, 5)
    upstream = exact(1, 2, tokens)
    options = make_masks(masks, 1, tokens).arguments()
    ours = rows_and_gradient(student, teacher, upstream, "chunked", **options)
    plain = rows_and_gradient(student, teacher, upstream, "reference", **options)
    for x, y in zip(ours, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("heads", range(1, 34))
@by_default(lambda heads: heads in (1, 2, 3, 7, 8, 9, 16, 17, 32, 33))
def test_head_counts_and_batches_in_default_chunks(heads, formula, make_masks) -> None:
    torch.manual_seed(heads)
    student = exact(3, heads, 130, 8, grad=True)
    teacher = exact(3, heads, 130, 8)
    upstream = exact(3, heads, 130)
    masks = make_masks("window-segments-padding", 3, 130)
    rows, gradient = rows_and_gradient(student, teacher, upstream, "chunked", **masks.arguments())
    expected = formula(student, student, teacher, teacher, masks, upstream=upstream)
    whole = torch.from_numpy(expected.gradient_q + expected.gradient_k)
    torch.testing.assert_close(rows, torch.from_numpy(expected.rows_bht), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("student_key_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("teacher_key_heads", [1, 2, 3, 6])
@by_default(
    lambda student_key_heads, teacher_key_heads, mask_kind: (
        student_key_heads * teacher_key_heads == 6 or mask_kind == "window-segments-padding"
    )
)
def test_grouped_attention_matches_the_formula(
    student_key_heads, teacher_key_heads, mask_kind, formula, make_masks, small_chunks
) -> None:
    torch.manual_seed(student_key_heads)
    q_student = exact(2, 6, 70, 8, grad=True)
    k_student = exact(2, student_key_heads, 70, 8, grad=True)
    q_teacher = exact(2, 6, 70, 4)
    k_teacher = exact(2, teacher_key_heads, 70, 4)
    tensors = (q_student, k_student, q_teacher, k_teacher)
    upstream = exact(2, 6, 70)
    masks = make_masks(mask_kind, 2, 70)
    numbers = {"scale": 0.7, "teacher_scale": 0.3, "temperature": 1.7}
    rows = attention_kl(
        *tensors, reduction="none", backend="chunked", **numbers, **masks.arguments()
    )
    rows.backward(upstream)
    expected = formula(*tensors, masks, upstream=upstream, **numbers)
    torch.testing.assert_close(rows, torch.from_numpy(expected.rows_bht), rtol=0, atol=1e-12)
    for x, gradient in ((q_student, expected.gradient_q), (k_student, expected.gradient_k)):
        torch.testing.assert_close(x.grad, torch.from_numpy(gradient), rtol=0, atol=1e-12)


def test_attention_of_one_tensor_with_itself_keeps_its_two_gradients_apart() -> None:
    x = exact(1, 2, 30, 8, grad=True)
    teacher = exact(1, 2, 30, 8)
    (twice,) = torch.autograd.grad(attention_kl(x, x, teacher, teacher, backend="chunked"), x)
    (once,) = torch.autograd.grad(relation_kl(x, teacher, backend="chunked"), x)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-15)


@pytest.mark.parametrize("chunks", ["default", "small"])
def test_gradcheck_of_a_relation(chunks, request) -> None:
    if chunks == "small":
        request.getfixturevalue("small_chunks")
    torch.manual_seed(0)
    student = exact(1, 2, 30, 2, grad=True)
    teacher = exact(1, 2, 30, 3)
    real = torch.rand(1, 30) < 0.8
    assert torch.autograd.gradcheck(
        lambda x: relation_kl(x, teacher, reduction="none", backend="chunked", key_mask=real),
        (student,),
    )


def test_gradcheck_of_grouped_attention(small_chunks) -> None:
    torch.manual_seed(0)
    q = exact(1, 4, 27, 2, grad=True)
    k = exact(1, 2, 27, 2, grad=True)
    q_teacher, k_teacher = randn(1, 4, 27, 3).double(), randn(1, 1, 27, 3).double()
    assert torch.autograd.gradcheck(
        lambda q, k: attention_kl(
            q, k, q_teacher, k_teacher, window=9, reduction="none", backend="chunked"
        ),
        (q, k),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [65, 300])
def test_error_is_that_of_the_dense_reference(dtype, tokens) -> None:
    torch.manual_seed(tokens)
    student = randn(2, 3, tokens, 64, dtype=dtype, grad=True)
    teacher = randn(2, 3, tokens, 64, dtype=dtype)
    upstream = randn(2, 3, tokens)
    wide_student = student.detach().double().requires_grad_()
    truths = rows_and_gradient(wide_student, teacher.double(), upstream, "reference")
    dense = rows_and_gradient(student, teacher, upstream, "reference")
    chunked = rows_and_gradient(student, teacher, upstream, "chunked")
    for ours, theirs, truth in zip(chunked, dense, truths, strict=True):
        bound = ORDER_OF_SUMMATION * (theirs - truth).abs().max()
        assert (ours - truth).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_of_300_lose_no_more_than_their_own_rounding(dtype) -> None:
    direction, signs = exact(64), torch.randint(0, 2, (200, 1)) * 2 - 1
    scale = 300 / direction.square().sum().item()

    def near_300() -> Tensor:
        """Rows along one direction, either way: scores near 300 and -300 that differ by about 1."""
        return (signs * direction + 0.03 * exact(1, 2, 200, 64)).to(dtype)

    student, teacher = near_300(), near_300()
    options = {"scale": scale, "teacher_scale": scale, "reduction": "none"}
    rows = relation_kl(student, teacher, backend="chunked", **options)
    truth = relation_kl(student.double(), teacher.double(), backend="reference", **options)
    assert truth.mean() > 0.5
    # A score is 64 products long and off by half a unit in the last place at 300 or so.
    rounding = 64**0.5 * 300 * torch.finfo(torch.float32).eps
    assert (rows - truth).abs().max() < rounding
    same = relation_kl(student, student, backend="chunked", **options)
    assert same.abs().max() <= 1e-6


@pytest.mark.parametrize("magnitude", [1.0, 17.0])
def test_identical_sides_have_kl_zero_and_gradient_zero(mask_kind, magnitude, make_masks) -> None:
    torch.manual_seed(0)
    x = magnitude * randn(2, 3, 150, 16)
    student = x.clone().requires_grad_()
    options = make_masks(mask_kind, 2, 150).arguments()
    rows = relation_kl(student, x, reduction="none", backend="chunked", **options)
    rows.sum().backward()
    assert rows.abs().max() <= 1e-6
    assert student.grad.abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_mean_of_many_rows_keeps_its_gradient_in_half_precision(dtype) -> None:
    torch.manual_seed(0)
    student, teacher = randn(1, 8, 300, 16, dtype=dtype, grad=True), randn(1, 8, 300, 16)
    loss = relation_kl(student, teacher, backend="chunked")
    (gradient,) = torch.autograd.grad(loss * 1024, student)
    wide = student.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(1024 * relation_kl(wide, teacher, backend="chunked"), wide)
    torch.testing.assert_close(gradient.float(), expected, rtol=2e-3, atol=1e-6)


def strided_variants() -> dict[str, Tensor]:
    torch.manual_seed(1)
    base = exact(2, 40, 3, 16)
    return {
        "tokens-before-heads": base.transpose(1, 2),
        "every-other-token": exact(2, 3, 80, 16)[:, :, ::2],
        "part-of-a-projection": exact(2, 3, 40, 48)[..., 16:32],
        "broadcast-batch": exact(1, 3, 40, 16).expand(2, -1, -1, -1),
        "last-axis-strided": exact(2, 3, 16, 40).transpose(2, 3),
    }


@pytest.mark.parametrize("kind", strided_variants())
def test_strides_do_not_matter(kind) -> None:
    view = strided_variants()[kind]
    student, upstream = view.detach().requires_grad_(), exact(2, 3, 40)
    copy = view.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    teacher = exact(2, 16, 40, 3).permute(0, 3, 2, 1)
    ours = rows_and_gradient(student, teacher, upstream, "chunked")
    plain = rows_and_gradient(copy, teacher.contiguous(), upstream, "chunked")
    for x, y in zip(ours, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_upstream_gradient_may_be_expanded_or_strided() -> None:
    student, teacher = randn(2, 3, 30, 8, grad=True), randn(2, 3, 30, 8)
    rows = relation_kl(student, teacher, reduction="none", backend="chunked")
    strided = randn(2, 30, 3).transpose(1, 2)
    for upstream in (torch.ones(()).expand(2, 3, 30), strided):
        (ours,) = torch.autograd.grad(rows, student, upstream, retain_graph=True)
        (plain,) = torch.autograd.grad(rows, student, upstream.contiguous(), retain_graph=True)
        assert torch.equal(ours, plain)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@contextmanager
def count_saved() -> Iterator[list[int]]:
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 50}], ids=str)
def test_memory_is_linear_in_tokens(options, small_chunks) -> None:
    for tokens in (200, 400):
        student, teacher = randn(1, 2, tokens, 8, grad=True), randn(1, 2, tokens, 8)
        real = torch.ones(1, tokens, dtype=torch.bool)
        masks = {"segment_ids": torch.zeros(1, tokens, dtype=torch.int64), "key_mask": real}
        with LargestTensor() as largest, count_saved() as saved:
            loss = relation_kl(student, teacher, backend="chunked", **masks, **options)
            loss.backward()
        assert largest.elements <= max(small_chunks, student.numel())
        assert sum(saved) <= student.numel() + teacher.numel() + 4 * 2 * tokens


def test_a_window_skips_what_it_hides(monkeypatch) -> None:
    """With a window, the work is linear in tokens too."""
    columns: list[int] = []
    multiply = torch.baddbmm

    def counted(*args, **kwargs):
        columns.append(kwargs["out"].numel())
        return multiply(*args, **kwargs)

    monkeypatch.setattr(torch, "baddbmm", counted)
    work = []
    for tokens in (1024, 2048):
        columns.clear()
        relation_kl(randn(1, 1, tokens, 4), randn(1, 1, tokens, 4), window=16, backend="chunked")
        work.append(sum(columns))
    assert work[1] < 2.1 * work[0]


def test_nothing_is_kept_without_a_gradient() -> None:
    student, teacher = randn(1, 2, 64, 8), randn(1, 2, 64, 8)
    assert not relation_kl(student, teacher, backend="chunked").requires_grad
    with torch.no_grad():
        assert not relation_kl(student.requires_grad_(), teacher, backend="chunked").requires_grad
    with torch.inference_mode():
        assert relation_kl(student, teacher, backend="chunked").isfinite()


def test_non_reentrant_checkpointing_gives_the_same_gradient() -> None:
    weight, x = randn(8, 8, grad=True), randn(1, 2, 50, 8)
    teacher = randn(1, 2, 50, 8)

    def loss(weight: Tensor) -> Tensor:
        return relation_kl(x @ weight, teacher, backend="chunked")

    (plain,) = torch.autograd.grad(loss(weight), weight)
    again = checkpoint(loss, weight, use_reentrant=False)
    (checkpointed,) = torch.autograd.grad(again, weight)
    assert torch.equal(plain, checkpointed)


def test_two_runs_are_bit_identical() -> None:
    student, teacher, upstream = (
        randn(2, 3, 200, 16, grad=True),
        randn(2, 3, 200, 16),
        randn(2, 3, 200),
    )
    torch.set_num_threads(2)
    first = rows_and_gradient(student, teacher, upstream, "chunked")
    second = rows_and_gradient(student, teacher, upstream, "chunked")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_autocast_and_fast_matmul_settings_change_nothing() -> None:
    student, teacher, upstream = (
        randn(1, 2, 300, 64, grad=True),
        randn(1, 2, 300, 64),
        randn(1, 2, 300),
    )
    plain = rows_and_gradient(student, teacher, upstream, "chunked")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            changed = rows_and_gradient(student, teacher, upstream, "chunked")
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
    for x, y in zip(plain, changed, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_packed_segments_equal_separate_sequences() -> None:
    lengths = (70, 1, 59)
    parts = [(exact(1, 3, n, 8), exact(1, 3, n, 8)) for n in lengths]
    separate = [relation_kl(s, t, reduction="none", backend="chunked") for s, t in parts]
    student, teacher = (torch.cat(side, dim=2) for side in zip(*parts, strict=True))
    ids = torch.repeat_interleave(torch.tensor([7, -2, 7000]), torch.tensor(lengths))[None]
    packed = relation_kl(student, teacher, reduction="none", segment_ids=ids, backend="chunked")
    torch.testing.assert_close(packed, torch.cat(separate, dim=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_equals_a_shorter_sequence(side) -> None:
    student, teacher = exact(1, 3, 100, 8, grad=True), exact(1, 3, 100, 8)
    kept = slice(30, 100) if side == "left" else slice(0, 70)
    real = torch.zeros(1, 100, dtype=torch.bool)
    real[:, kept] = True
    padded = relation_kl(student, teacher, key_mask=real, backend="chunked")
    (padded_gradient,) = torch.autograd.grad(padded, student)
    short = relation_kl(student[:, :, kept], teacher[:, :, kept], backend="chunked")
    (short_gradient,) = torch.autograd.grad(short, student)
    torch.testing.assert_close(padded, short, rtol=0, atol=1e-12)
    torch.testing.assert_close(padded_gradient, short_gradient, rtol=0, atol=1e-12)
    assert not padded_gradient[:, :, ~real[0]].any()


def test_sides_may_differ_in_dtype() -> None:
    student, teacher = randn(1, 2, 40, 8, dtype=torch.bfloat16, grad=True), randn(1, 2, 40, 8)
    mixed = relation_kl(student, teacher, reduction="none", backend="chunked")
    wide = relation_kl(student.float(), teacher, reduction="none", backend="chunked")
    assert torch.equal(mixed, wide)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunks", ["default", "small"])
def test_cuda_matches_float64(dtype, chunks, mask_kind, make_masks, request) -> None:
    if chunks == "small":
        request.getfixturevalue("small_chunks")
    torch.manual_seed(0)
    student = randn(2, 3, 300, 64, dtype=dtype).cuda().requires_grad_()
    teacher = randn(2, 3, 300, 64, dtype=dtype).cuda()
    upstream = torch.ones(2, 3, 300, device="cuda")
    options = make_masks(mask_kind, 2, 300).arguments("cuda")
    wide_student = student.detach().double().requires_grad_()
    truths = rows_and_gradient(wide_student, teacher.double(), upstream, "reference", **options)
    ours = rows_and_gradient(student, teacher, upstream, "chunked", **options)
    # Scores are float32 sums; P_s - P_t is rounded to the inputs' dtype for its two products.
    assert (ours[0] - truths[0]).abs().max() < 1e-4
    relative = (ours[1] - truths[1]).norm() / truths[1].norm()
    assert relative < 2 * torch.finfo(dtype).eps if dtype is not torch.float32 else relative < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_multiplies_float32_in_tf32_only_when_allowed() -> None:
    torch.manual_seed(0)
    student, teacher = randn(1, 2, 300, 128).cuda(), randn(1, 2, 300, 128).cuda()
    truth = relation_kl(student.double(), teacher.double(), reduction="none", backend="chunked")
    before = torch.get_float32_matmul_precision()
    errors = {}
    try:
        for allowed, process_setting in ((False, "high"), (True, "highest")):
            torch.set_float32_matmul_precision(process_setting)
            options = {"backend": "chunked", "allow_tf32": allowed, "reduction": "none"}
            rows = relation_kl(student, teacher, **options)
            errors[allowed] = (rows - truth).abs().max().item()
            assert torch.get_float32_matmul_precision() == process_setting
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors[False] < 1e-5 < errors[True]
