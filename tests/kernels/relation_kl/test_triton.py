"""The Triton backend: interpreted where there is no CUDA device, compiled where there is one.

Both compare with float64. A bound is the error of dense torch on the same inputs, times a factor:
1.2 for root mean squares over many numbers, more where a few numbers' luck decides. The interpreter
takes milliseconds a tile, so its problems are small; blocks are small with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from kernels.relation_kl import attention_kl, launch, relation_kl, relation_kl_set
from kernels.relation_kl import triton as backend
from kernels.relation_kl.launch import KERNELS, Launch
from tests.conftest import by_default

NO_GPU = not torch.cuda.is_available()
INTERPRETED = pytest.mark.skipif(not NO_GPU, reason="compiled for this machine's GPU instead")
COMPILED = (pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="needs a CUDA device"))
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(NO_GPU, reason="needs a CUDA device")
DEVICES = {"interpreter": ("cpu", INTERPRETED), "gpu": ("cuda", COMPILED)}

FEW_NUMBERS = 4.0  # how much more than dense torch's largest error is luck
MANY_NUMBERS = 1.2
A_FEW_ROUNDINGS = 2 * torch.finfo(torch.float32).eps
# Below this, errors are those of a few roundings, and dense torch's may happen to be none.
ROUNDING = 16 * torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def interpreter_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    if NO_GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=[pytest.param(d, id=n, marks=m) for n, (d, m) in DEVICES.items()])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@dataclass(frozen=True)
class Setting:
    device: str
    dtype: torch.dtype


def settings() -> Iterator[object]:
    # The interpreter multiplies bfloat16 wrongly; the backend refuses it there (test_api.py).
    for name, (device, marks) in DEVICES.items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            if device == "cuda" or dtype is not torch.bfloat16:
                identity = f"{name}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(Setting(device, dtype), id=identity, marks=marks)


@pytest.fixture(params=[*settings()])
def setting(request: pytest.FixtureRequest) -> Setting:
    return request.param


@contextmanager
def blocks(own: int, other: int) -> Iterator[None]:
    with launch.overridden({kernel: Launch(own, other, 4, 1) for kernel in KERNELS}):
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that were started."""
    names: list[str] = []
    start = backend._start

    def counted(kernel, *args, **kwargs) -> None:
        names.append(kernel.fn.__name__)
        start(kernel, *args, **kwargs)

    monkeypatch.setattr(backend, "_start", counted)
    return names


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(device)


def wide(x: Tensor) -> Tensor:
    return x.detach().double()


def differentiated(
    function, leaves: list[Tensor], fixed: list[Tensor], upstream: Tensor, **options
) -> list[Tensor]:
    """Rows and the leaves' gradients, in float64."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    rows = function(*leaves, *fixed, reduction="none", **options)
    gradients = torch.autograd.grad(rows, leaves, upstream.to(rows.dtype))
    return [wide(x) for x in (rows, *gradients)]


def of_relation(student, teacher, upstream, name, **options) -> list[Tensor]:
    return differentiated(relation_kl, [student], [teacher], upstream, backend=name, **options)


def of_attention(q_s, k_s, q_t, k_t, upstream, name, **options) -> list[Tensor]:
    return differentiated(attention_kl, [q_s, k_s], [q_t, k_t], upstream, backend=name, **options)


def assert_as_precise(ours: list[Tensor], dense: list[Tensor], truth: list[Tensor]) -> None:
    for x, y, z in zip(ours, dense, truth, strict=True):
        scale = max(1.0, z.abs().max().item())
        bound = FEW_NUMBERS * (y - z).abs().max().item() + ROUNDING * scale
        assert (x - z).abs().max().item() <= bound


def real_rows(options: dict[str, object], upstream: Tensor) -> Tensor:
    """Upstream gradients as the operator's face gives them: 0 at padding."""
    real = options["key_mask"]
    return upstream if real is None else upstream * real[:, None]


def check_relation(student: Tensor, teacher: Tensor, upstream: Tensor, **options) -> None:
    ours = of_relation(student, teacher, upstream, "triton", **options)
    dense = of_relation(student, teacher, upstream, "reference", **options)
    truth = of_relation(wide(student), wide(teacher), upstream, "reference", **options)
    assert_as_precise(ours, dense, truth)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 111, 128])
@by_default(lambda tokens, mask_kind: tokens == 65 or mask_kind == "window-segments-padding")
def test_lengths_and_masks(tokens, mask_kind, device, formula, make_masks) -> None:
    torch.manual_seed(tokens)
    student, teacher = randn(2, 1, tokens, 8, device=device), randn(2, 1, tokens, 5, device=device)
    upstream = randn(2, 1, tokens, device=device)
    masks = make_masks(mask_kind, 2, tokens)
    options = masks.arguments(device)
    expected = formula(student, student, teacher, teacher, masks, upstream=upstream)
    truth = [expected.rows_bht, expected.gradient_q + expected.gradient_k]
    with blocks(64, 32) if tokens % 2 else blocks(32, 64):
        ours = of_relation(student, teacher, upstream, "triton", **options)
    dense = of_relation(student, teacher, upstream, "reference", **options)
    assert_as_precise(ours, dense, [torch.from_numpy(x).to(device) for x in truth])


@pytest.mark.parametrize("tokens", [1000, 2049])
@pytest.mark.parametrize("masks", ["causal", "window", "packed"])
@by_default(lambda tokens, masks: (tokens == 1000) != (masks == "causal"))
def test_long_rows(tokens, masks, device) -> None:
    torch.manual_seed(tokens)
    student, teacher = (
        randn(1, 1, tokens, 16, device=device),
        randn(1, 1, tokens, 16, device=device),
    )
    segments = (torch.arange(tokens, device=device) // 300)[None]
    options = {"causal": {}, "window": {"window": 200}, "packed": {"segment_ids": segments}}[masks]
    size = 256 if masks == "causal" else 128
    with blocks(size, size) if device == "cpu" else blocks(64, 32):
        check_relation(student, teacher, randn(1, 1, tokens, device=device), **options)


def head_counts() -> Iterator[object]:
    some = (1, 2, 3, 5, 8, 9, 15, 16, 17, 32, 33)
    for name, (device, marks) in DEVICES.items():
        for heads in some if device == "cpu" else range(1, 34):
            yield pytest.param(heads, device, id=f"{name}-{heads}", marks=marks)


@pytest.mark.parametrize(("heads", "device"), [*head_counts()])
@by_default(lambda heads: heads in (1, 2, 3, 8, 9, 33))
def test_head_counts(heads, device) -> None:
    torch.manual_seed(heads)
    student, teacher = randn(1, heads, 18, 4, device=device), randn(1, heads, 18, 4, device=device)
    upstream = randn(1, heads, 18, device=device)
    with blocks(32, 32):
        check_relation(student, teacher, upstream)


@pytest.mark.parametrize("head_dim", [16, 24, 32, 64, 80, 96, 112, 128, 192, 256])
@by_default(
    lambda head_dim, setting: (
        setting.device == "cuda" or setting.dtype is torch.float32 or head_dim in (24, 64, 80, 256)
    )
)
def test_head_sizes(head_dim, setting) -> None:
    torch.manual_seed(head_dim)
    kind = {"dtype": setting.dtype, "device": setting.device}
    student, teacher = randn(1, 2, 40, head_dim, **kind), randn(1, 2, 40, 272 - head_dim, **kind)
    upstream = randn(1, 2, 40, device=setting.device)
    ours = of_relation(student, teacher, upstream, "triton")
    dense = dense_relation(student, teacher, upstream)
    truth = of_relation(wide(student), wide(teacher), upstream, "reference")
    assert_as_precise(ours, dense, truth)


@pytest.mark.parametrize("student_key_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("teacher_key_heads", [1, 2, 3, 6])
@by_default(lambda student_key_heads, teacher_key_heads: student_key_heads * teacher_key_heads == 6)
def test_grouped_attention(student_key_heads, teacher_key_heads, device) -> None:
    torch.manual_seed(student_key_heads)
    tensors = [
        randn(1, heads, 20, head_dim, device=device)
        for heads, head_dim in ((6, 8), (student_key_heads, 8), (6, 20), (teacher_key_heads, 20))
    ]
    upstream = randn(1, 6, 20, device=device)
    numbers = {"scale": 0.7, "teacher_scale": 0.3, "temperature": 1.7}
    with blocks(32, 32):
        ours = of_attention(*tensors, upstream, "triton", **numbers)
    dense = of_attention(*tensors, upstream, "reference", **numbers)
    truth = of_attention(*map(wide, tensors), upstream, "reference", **numbers)
    assert_as_precise(ours, dense, truth)


@pytest.mark.parametrize("tokens", [1, 63, 111])
@by_default(lambda tokens, mask_kind: tokens == 63 or mask_kind == "window-segments-padding")
def test_attention_lengths_and_masks(tokens, mask_kind, device, formula, make_masks) -> None:
    torch.manual_seed(tokens)
    tensors = [randn(2, heads, tokens, 8, device=device) for heads in (2, 1, 2, 2)]
    upstream = randn(2, 2, tokens, device=device)
    masks = make_masks(mask_kind, 2, tokens)
    expected = formula(*tensors, masks, upstream=upstream)
    truth = [expected.rows_bht, expected.gradient_q, expected.gradient_k]
    with blocks(64, 32):
        ours = of_attention(*tensors, upstream, "triton", **masks.arguments(device))
    dense = of_attention(*tensors, upstream, "reference", **masks.arguments(device))
    assert_as_precise(ours, dense, [torch.from_numpy(x).to(device) for x in truth])


def test_relations_of_several_shapes_share_a_launch(device, launches) -> None:
    torch.manual_seed(0)
    shapes = [(2, 4, 50, 20), (2, 1, 50, 32), (2, 2, 50, 17)]
    students = [randn(*shape, device=device).requires_grad_() for shape in shapes]
    teachers = [randn(*shape[:3], 30, device=device) for shape in shapes]
    real = torch.rand(2, 50, device=device) < 0.8
    options = {"key_mask": real, "causal": False}
    with blocks(64, 64):
        loss, by_relation = relation_kl_set(
            students, teachers, [1.0, 0.0, 3.0], backend="triton", **options
        )
        gradients = torch.autograd.grad(loss, students)
    assert [name for name in launches if name.startswith("self")] == [
        "self_forward_kernel",
        "self_backward_kernel",
    ]
    expected, each = relation_kl_set(
        students, teachers, [1.0, 0.0, 3.0], backend="reference", **options
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(by_relation, each)
    for ours, plain in zip(gradients, torch.autograd.grad(expected, students), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)
    assert not gradients[1].any()


def test_relations_that_no_kernel_takes_together_are_launched_apart(device, launches) -> None:
    torch.manual_seed(0)
    half = torch.float16
    students = [
        *(randn(1, 1, 20, 16, device=device) for _ in range(5)),
        randn(1, 2, 20, 16, dtype=half, device=device),
        randn(1, 1, 20, 48, device=device),
    ]
    teachers = [x.roll(1, dims=2) for x in students]
    with blocks(32, 32):
        _, each = relation_kl_set(students, teachers, [1.0] * 7, backend="triton")
    assert launches == ["self_forward_kernel"] * 4  # four, the fifth, float16, wider heads
    _, expected = relation_kl_set(students, teachers, [1.0] * 7, backend="reference")
    torch.testing.assert_close(each, expected)


def test_sides_may_differ_in_dtype(device) -> None:
    torch.manual_seed(0)
    student, teacher = randn(1, 2, 40, 16, dtype=torch.float16, device=device), randn(1, 2, 40, 16)
    teacher, upstream = teacher.to(device), randn(1, 2, 40, device=device)
    rows, gradient = of_relation(student, teacher, upstream, "triton")
    expected, plain = of_relation(student, teacher, upstream, "reference")
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, plain, rtol=4e-3, atol=1e-3)


def dense_relation(
    student: Tensor, teacher: Tensor, upstream: Tensor, scale: float | None = None
) -> list[Tensor]:
    """A causal relation in dense torch: sums and softmax in float32, products of the inputs' dtype.

    In half precision the gradient's products take ``G`` in it, as those of any such model do.
    """
    dtype, heads_t = student.dtype, student.shape[2]
    hidden = torch.ones(heads_t, heads_t, dtype=torch.bool, device=student.device).triu(1)

    def log_probabilities(x: Tensor) -> tuple[Tensor, float]:
        factor = x.shape[-1] ** -0.5 if scale is None else scale
        scores = factor * (x.float() @ x.float().mT)
        return scores.masked_fill(hidden, -math.inf).log_softmax(-1), factor

    (s, factor), (t, _) = log_probabilities(student), log_probabilities(teacher)
    rows = (t.exp() * (t - s).masked_fill(hidden, 0.0)).sum(-1)
    peak = upstream.abs().max()
    g = ((upstream / peak)[..., None].float() * (s.exp() - t.exp())).to(dtype).float()
    x = student.float()
    gradient = (factor * peak).float() * (g @ x + g.mT @ x)
    return [wide(rows), wide(gradient.to(dtype))]


FAMILIES = ("normal", "large", "near", "one-hot")


def make_family(kind: str, setting: Setting) -> tuple[Tensor, Tensor, float | None]:
    """Student, teacher and scale of rows of one kind."""
    shape, scale = (1, 2, 192, 64), None
    if kind == "normal":
        student, teacher = randn(*shape), randn(*shape)
    elif kind == "large":  # scores near 300 and -300 that differ by about 1 within a sign
        direction, signs = randn(64), torch.randint(0, 2, (192, 1)) * 2.0 - 1
        scale = 300 / direction.square().sum().item()
        student, teacher = (signs * direction + 0.03 * randn(*shape) for _ in range(2))
    elif kind == "near":
        student = randn(*shape)
        teacher = student + 3e-4 * randn(*shape)
    else:
        student, teacher = 4 * randn(*shape), 4 * randn(*shape)
    move = {"dtype": setting.dtype, "device": setting.device}
    return student.to(**move), teacher.to(**move), scale


def probability_noise(x: Tensor, upstream: Tensor, scale: float | None = None) -> Tensor:
    """What a relative error of 1 in every probability does to a gradient, root mean square."""
    scale = x.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * wide(x) @ wide(x).mT
    hidden = torch.ones_like(scores[0, 0]).triu(1).bool()
    squares = (wide(upstream)[..., None] * scores.masked_fill(hidden, -math.inf).softmax(-1)) ** 2
    return scale * ((squares + squares.mT) @ wide(x) ** 2).mean().sqrt()


@pytest.mark.parametrize("kind", FAMILIES)
def test_error_is_that_of_dense_torch(kind, setting) -> None:
    torch.manual_seed(3)
    student, teacher, scale = make_family(kind, setting)
    upstream = randn(1, 2, 192, device=setting.device)
    numbers = {"scale": scale, "teacher_scale": scale}
    ours = of_relation(student, teacher, upstream, "triton", **numbers)
    dense = dense_relation(student, teacher, upstream, scale)
    truth = of_relation(wide(student), wide(teacher), upstream, "reference", **numbers)
    if kind == "near":
        assert truth[0].max() < 1e-6 or setting.dtype is not torch.float32
    # Dense torch's error may happen to be none, as in one-hot rows: a few roundings of the numbers
    # that results are made of are allowed beside it.
    made_of = (torch.ones(()), probability_noise(teacher, upstream, scale))
    for x, y, z, noise in zip(ours, dense, truth, made_of, strict=True):
        assert x.isfinite().all()
        bound = MANY_NUMBERS * (y - z).square().mean().sqrt() + A_FEW_ROUNDINGS * noise.item()
        assert (x - z).square().mean().sqrt() <= bound
    assert ours[0].min() >= -1e-5 or kind == "large"


@pytest.mark.parametrize("magnitude", [1.0, 12.0])
def test_identical_sides_have_kl_zero(magnitude, setting) -> None:
    torch.manual_seed(0)
    x = magnitude * randn(1, 2, 100, 64, dtype=setting.dtype, device=setting.device)
    rows, gradient = of_relation(x, x.clone(), torch.ones(1, 2, 100, device=x.device), "triton")
    assert rows.abs().max() <= 1e-6
    assert gradient.abs().max() <= 1e-6 * magnitude


def test_rows_that_see_only_themselves_have_kl_zero(setting) -> None:
    torch.manual_seed(0)
    shape, kind = (1, 2, 70, 64), {"dtype": setting.dtype, "device": setting.device}
    student, teacher = 5 * randn(*shape, **kind), 3 * randn(*shape, **kind)
    alone = torch.arange(70, device=setting.device)[None]
    some = torch.zeros(1, 70, dtype=torch.bool, device=setting.device)
    some[0, 33] = True
    for options in ({"window": 1}, {"segment_ids": alone}, {"key_mask": some, "causal": False}):
        rows = relation_kl(student, teacher, reduction="none", backend="triton", **options)
        assert not rows.any()
    assert not relation_kl(student, teacher, reduction="none", backend="triton")[..., 0].any()


@pytest.mark.parametrize("causal", [True, False])
def test_logits_to_30_never_give_a_negative_kl(causal, setting) -> None:
    torch.manual_seed(0)
    kind = {"dtype": setting.dtype, "device": setting.device}
    student = randn(1, 2, 150, 64, **kind) * 1.6
    teacher = student + 1e-3 * randn(1, 2, 150, 64, **kind)
    rows = relation_kl(student, teacher, reduction="none", backend="triton", causal=causal)
    assert rows.min() >= -1e-5


def test_a_mean_of_many_rows_keeps_its_gradient_in_half_precision(device) -> None:
    torch.manual_seed(0)
    student = randn(1, 4, 150, 16, dtype=torch.float16, device=device).requires_grad_()
    teacher = randn(1, 4, 150, 16, device=device).half()
    loss = relation_kl(student, teacher, backend="triton")
    (gradient,) = torch.autograd.grad(loss * 1024, student)
    same = student.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(1024 * relation_kl(same, teacher, backend="reference"), same)
    torch.testing.assert_close(gradient.float(), expected, rtol=4e-3, atol=2e-4)


def test_upstream_gradients_of_very_different_size_keep_their_heads_apart(device) -> None:
    torch.manual_seed(0)
    student, teacher = (randn(1, 2, 60, 16, device=device).half() for _ in range(2))
    upstream = torch.ones(1, 2, 60, device=device)
    upstream[:, 1] = 1e-7
    _, gradient = of_relation(student.float(), teacher, upstream, "triton")
    _, expected = of_relation(wide(student), wide(teacher), upstream, "reference")
    for head in range(2):
        error = (gradient[:, head] - expected[:, head]).norm()
        assert error <= 1e-3 * expected[:, head].norm()


@pytest.mark.parametrize("make", ["zeros", "expanded", "strided"])
def test_upstream_gradients_of_any_layout(make, device) -> None:
    student = randn(2, 3, 30, 8, device=device).requires_grad_()
    rows = relation_kl(
        student, randn(2, 3, 30, 8, device=device), reduction="none", backend="triton"
    )
    upstream = {
        "zeros": torch.zeros(2, 3, 30, device=device),
        "expanded": torch.ones((), device=device).expand(2, 3, 30),
        "strided": randn(2, 30, 3, device=device).transpose(1, 2),
    }[make]
    (ours,) = torch.autograd.grad(rows, student, upstream, retain_graph=True)
    (plain,) = torch.autograd.grad(rows, student, upstream.contiguous())
    assert torch.equal(ours, plain)
    assert ours.isfinite().all()
    assert bool(ours.any()) == (make != "zeros")


def strided(kind: str, device: str) -> Tensor:
    torch.manual_seed(1)
    return {
        "tokens-before-heads": randn(2, 40, 3, 16).to(device).transpose(1, 2),
        "every-other-token": randn(2, 3, 80, 16).to(device)[:, :, ::2],
        "part-of-a-projection": randn(2, 3, 40, 48).to(device)[..., 16:32],
        "unaligned": randn(2, 3, 40, 19).to(device)[..., 3:],
        "broadcast-batch": randn(1, 3, 40, 16).to(device).expand(2, -1, -1, -1),
        "last-axis-strided": randn(2, 3, 16, 40).to(device).transpose(2, 3),
    }[kind]


STRIDED = pytest.mark.parametrize(
    "kind",
    [
        "tokens-before-heads",
        "every-other-token",
        "part-of-a-projection",
        "unaligned",
        "broadcast-batch",
        "last-axis-strided",
    ],
)


@STRIDED
def test_strides_do_not_matter(kind, device) -> None:
    view, upstream = strided(kind, device), randn(2, 3, 40, device=device)
    teacher = randn(2, 16, 40, 3, device=device).permute(0, 3, 2, 1)
    with blocks(64, 32):
        ours = of_relation(view, teacher, upstream, "triton")
        plain = of_relation(view.contiguous(), teacher.contiguous(), upstream, "triton")
    for x, y in zip(ours, plain, strict=True):
        assert torch.equal(x, y)


def test_a_gradient_has_the_layout_of_its_tensor(device) -> None:
    student = strided("tokens-before-heads", device).requires_grad_()
    loss = relation_kl(student, randn(2, 3, 40, 16, device=device), backend="triton")
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.stride() == student.stride()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@by_default(lambda dtype: dtype in (torch.int64, torch.uint8))
def test_segments_may_have_any_numbers_in_any_order(dtype, device) -> None:
    torch.manual_seed(0)
    limits = torch.iinfo(dtype)
    numbers = torch.tensor([limits.min, limits.max, 7, limits.max - 1], device=device).to(dtype)
    segments = numbers[torch.randint(0, 4, (2, 150), device=device)]
    student, teacher = randn(2, 1, 150, 16, device=device), randn(2, 1, 150, 16, device=device)
    upstream = randn(2, 1, 150, device=device)
    with blocks(64, 64):
        check_relation(student, teacher, upstream, segment_ids=segments)


def test_segments_equal_modulo_two_to_the_32_are_different(device) -> None:
    student, teacher = randn(1, 1, 40, 16, device=device), randn(1, 1, 40, 16, device=device)
    ids = (torch.arange(40, device=device) % 2)[None]
    far = ids * 2**32 + 5
    near, same = (
        relation_kl(student, teacher, segment_ids=x, reduction="none", backend="triton")
        for x in (ids, far)
    )
    assert torch.equal(near, same)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("kind", ["packed", "right-padding", "window"])
def test_blocks_that_nobody_sees_are_not_read(kind, device) -> None:
    """What they hold would spoil the gradient: 0 times NaN."""
    torch.manual_seed(0)
    student, teacher = randn(1, 1, 512, 16, device=device), randn(1, 1, 512, 16, device=device)
    real = torch.arange(512, device=device)[None] < 256
    options = {
        "packed": {"segment_ids": (~real).long()},
        "right-padding": {"key_mask": real},
        "window": {"window": 64},
    }[kind]
    student[:, :, 384:] = math.nan
    leaf = student.requires_grad_()
    with blocks(64, 64):
        rows = relation_kl(leaf, teacher, reduction="none", backend="triton", **options)
        (gradient,) = torch.autograd.grad(rows[..., :256].sum(), leaf)
    assert gradient[:, :, :256].isfinite().all()


@by_default(lambda setting: setting.dtype is torch.float16)
def test_repeats_are_bit_identical(setting) -> None:
    torch.manual_seed(0)
    batch, tokens, repeats = (2, 500, 100) if setting.device == "cuda" else (1, 70, 3)
    kind = {"dtype": setting.dtype, "device": setting.device}
    student, teacher = (randn(batch, 3, tokens, 64, **kind) for _ in range(2))
    keys = [randn(batch, 1, tokens, 64, **kind) for _ in range(2)]
    upstream = randn(batch, 3, tokens, device=setting.device)
    real = torch.rand(batch, tokens, device=setting.device) < 0.9

    def results() -> list[Tensor]:
        tensors = (student, keys[0], teacher, keys[1])
        return [
            *of_relation(student, teacher, upstream, "triton", key_mask=real),
            *of_attention(*tensors, upstream, "triton", key_mask=real),
        ]

    first = results()
    for _ in range(repeats - 1):
        assert all(torch.equal(x, y) for x, y in zip(first, results(), strict=True))


def operands(device: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """Students that need gradients, and teachers: two relations."""
    torch.manual_seed(0)
    students = [randn(1, h, 20, 16, dtype=dtype, device=device).requires_grad_() for h in (3, 1)]
    return students, [randn(1, h, 20, 16, dtype=dtype, device=device) for h in (3, 1)]


def set_loss(*tensors: Tensor) -> Tensor:
    half = len(tensors) // 2
    real = torch.arange(20, device=tensors[0].device)[None] < 17
    loss, _ = relation_kl_set(
        tensors[:half], tensors[half:], [1.0, 2.0], key_mask=real, backend="triton"
    )
    return loss


@pytest.mark.parametrize("function", ["set", "attention"])
@by_default(lambda function, setting: (function == "set") == (setting.dtype is torch.float32))
def test_compiled_equals_eager(function, setting) -> None:
    """Gradients bit for bit. The loss itself only where the compiler leaves the mean as it is:
    inductor sums the rows in an order of its own."""
    (q, k), (q_teacher, k_teacher) = operands(setting.device, setting.dtype)

    def attention_loss(*tensors: Tensor) -> Tensor:
        return attention_kl(*tensors, window=9, backend="triton")

    loss = set_loss if function == "set" else attention_loss
    tensors = (q, k, q_teacher, k_teacher)
    compiler = "inductor" if setting.device == "cuda" else "aot_eager"
    torch._dynamo.reset()
    results = []
    for run in (torch.compile(loss, fullgraph=True, backend=compiler), loss):
        value = run(*tensors)
        results.append([value.detach(), *torch.autograd.grad(value, (q, k))])
    (loss_compiled, *compiled), (loss_eager, *eager) = results
    rounding = 1e-6 if compiler == "inductor" else 0.0
    torch.testing.assert_close(loss_compiled, loss_eager, rtol=rounding, atol=0.0)
    for x, y in zip(compiled, eager, strict=True):
        assert torch.equal(x, y)


@INTERPRETED
def test_numbers_that_change_stay_in_one_graph() -> None:
    """A second value makes a number symbolic: all that looks at it must be traceable."""
    (x, _), (y, _) = operands("cpu")

    def loss(weight: float, temperature: float) -> Tensor:
        settings = {"temperature": temperature, "backend": "triton"}
        return relation_kl_set([x], [y], [weight], **settings)[0]

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for weight, temperature in ((0.5, 1.0), (0.25, 2.0), (0.0, 3.0)):
        assert torch.equal(compiled(weight, temperature), loss(weight, temperature))


def test_operators_are_registered_whole(device) -> None:
    students, teachers = operands(device)
    # Layouts other than the plain one must be told to the compiler too.
    students = [x.detach().transpose(1, 2).clone().transpose(1, 2) for x in students]
    students = [x.requires_grad_() for x in students]
    real = torch.arange(20, device=device)[None] < 17
    ids = torch.zeros(1, 20, dtype=torch.int64, device=device)
    relations = (students, teachers, ids, real, [0.2, 0.2], [0.3, 0.3], True, 9, False)
    attention = (students, teachers, ids, real, [0.2], [0.3], False, None, False)
    operators = torch.ops.relation_kl
    sums = {}
    for name, arguments in (("self_rows", relations), ("attention_rows", attention)):
        operator = getattr(operators, name).default
        torch.library.opcheck(operator, arguments)
        sums[name] = [x.detach() for x in operator(*arguments)]
    for name, arguments in (("self_rows", relations), ("attention_rows", attention)):
        rows, *rest = sums[name]
        plain = [
            [x.detach() for x in argument]
            if isinstance(argument, list) and isinstance(argument[0], Tensor)
            else argument.detach()
            if isinstance(argument, Tensor)
            else argument
            for argument in arguments
        ]
        backward = getattr(operators, f"{name}_backward").default
        torch.library.opcheck(backward, (torch.ones_like(rows), rest, *plain))


def test_a_checkpoint_may_keep_the_small_outputs(device, launches) -> None:
    students, teachers = operands(device)
    weight = torch.eye(16, device=device).requires_grad_()

    def loss(weight: Tensor) -> Tensor:
        return set_loss(*(x.detach() @ weight for x in students), *teachers)

    def policy(context, operator, *args, **kwargs) -> CheckpointPolicy:
        keep = operator is torch.ops.relation_kl.self_rows.default
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    gradients, forwards = [], []
    for options in (
        None,
        {},
        {"context_fn": lambda: create_selective_checkpoint_contexts(policy)},
    ):
        launches.clear()
        value = (
            loss(weight)
            if options is None
            else checkpoint(loss, weight, use_reentrant=False, **options)
        )
        gradients += torch.autograd.grad(value, weight)
        forwards.append(launches.count("self_forward_kernel"))
        assert launches.count("self_backward_kernel") == 1
    assert forwards == [1, 2, 1]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_autocast_changes_nothing(setting) -> None:
    students, teachers = operands(setting.device, setting.dtype)
    plain = set_loss(*students, *teachers)
    with torch.autocast(setting.device, dtype=torch.bfloat16):
        cast = set_loss(*students, *teachers)
    assert torch.equal(plain, cast)
    for x, y in zip(
        torch.autograd.grad(plain, students), torch.autograd.grad(cast, students), strict=True
    ):
        assert torch.equal(x, y)


def test_nothing_is_kept_without_a_gradient(device) -> None:
    students, teachers = operands(device)
    with torch.no_grad():
        assert not set_loss(*students, *teachers).requires_grad
    with torch.inference_mode():
        assert set_loss(*students, *teachers).isfinite()


def test_the_teacher_gets_no_gradient(device) -> None:
    students, teachers = operands(device)
    teachers = [x.requires_grad_() for x in teachers]
    set_loss(*students, *teachers).backward()
    attention_kl(*students, *teachers, backend="triton").backward()
    assert all(x.grad is None for x in teachers)
    assert all(x.grad is not None for x in students)


def test_a_relation_may_need_no_gradient(device) -> None:
    students, teachers = operands(device)
    expected = torch.autograd.grad(set_loss(*students, *teachers), students[:1])
    students[1] = students[1].detach()
    ours = torch.autograd.grad(set_loss(*students, *teachers), students[:1])
    assert torch.equal(ours[0], expected[0])


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_default_launches_with_masks(dtype, head_dim, mask_kind, make_masks) -> None:
    torch.manual_seed(0)
    kind = {"dtype": dtype, "device": "cuda"}
    options = make_masks(mask_kind, 2, 700).arguments("cuda")
    student, teacher = randn(2, 3, 700, head_dim, **kind), randn(2, 3, 700, head_dim, **kind)
    keys = [randn(2, 1, 700, head_dim, **kind) for _ in range(2)]
    upstream = randn(2, 3, 700, device="cuda")
    tensors = (student, keys[0], teacher, keys[1])
    for function, inputs in ((of_relation, (student, teacher)), (of_attention, tensors)):
        ours = function(*inputs, upstream, "triton", **options)
        truth = function(*map(wide, inputs), upstream, "reference", **options)
        assert (ours[0] - truth[0]).abs().max() < 1e-4
        # A token's relation with itself is nearly 1, so what is left is a difference of such.
        noise = 0.0 if function is of_attention else probability_noise(teacher, upstream)
        for x, y in zip(ours[1:], truth[1:], strict=True):
            # In float32 the device's exponentials, good to 2^-22, decide.
            eps = 2**-15 if dtype is torch.float32 else 2 * torch.finfo(dtype).eps
            rounding = A_FEW_ROUNDINGS * noise * y.numel() ** 0.5
            assert (x - y).norm() <= eps * y.norm() + rounding


@INTERPRETED
@pytest.mark.parametrize(("bad", "programs"), [(2.0**60, 256), (math.inf, 2), (math.nan, 2)])
def test_blocks_whose_sums_are_too_large_are_done_again(monkeypatch, bad, programs) -> None:
    """Hopper's forward leaves them to the general one; all others keep what it wrote."""
    torch.manual_seed(0)
    students, teachers = ([randn(2, heads, 70, 16) for heads in (2, 1)] for _ in range(2))
    arguments = (students, teachers, None, None, [0.25] * 2, [0.25] * 2, True, None, False)
    left = [(0, 0, 0), (0, 2, 69), (1, 1, 31), (1, 1, 32)]

    class Hopper:
        @staticmethod
        def forward(inputs, results) -> None:
            for result in results:
                result.fill_(-7.0)
            for n, place in enumerate(left):
                (results.student_sum, results.teacher_sum)[n % 2][place] = bad

    with blocks(16, 16):
        whole = torch.ops.relation_kl.self_rows(*arguments)
        monkeypatch.setattr(backend, "_hopper", lambda *_: Hopper)
        monkeypatch.setattr(backend, "_BUSY_PROGRAMS", programs)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        again = torch.ops.relation_kl.self_rows(*arguments)
    redone = torch.zeros(2, 3, 70, dtype=torch.bool)
    for b, h, t in left:
        redone[b, h, t // 16 * 16 : t // 16 * 16 + 16] = True
    for x, y in zip(again, whole, strict=True):
        assert torch.equal(x[redone], y[redone])
        assert (x[~redone] == -7.0).all()


@gpu
@needs_gpu
def test_tf32_only_when_allowed() -> None:
    torch.manual_seed(0)
    student, teacher = randn(1, 2, 300, 128, device="cuda"), randn(1, 2, 300, 128, device="cuda")
    truth = relation_kl(wide(student), wide(teacher), reduction="none", backend="reference")
    errors = {}
    for allowed in (False, True):
        rows = relation_kl(student, teacher, reduction="none", backend="triton", allow_tf32=allowed)
        errors[allowed] = (rows - truth).abs().max().item()
    assert errors[False] < 1e-5 < errors[True]


@gpu
@needs_gpu
@pytest.mark.parametrize("axis", ["heads", "tokens"])
def test_offsets_beyond_32_bits(axis) -> None:
    """Elements more than 2^31 from the first: a far second head, or far tokens."""
    torch.manual_seed(0)
    apart = {"heads": (2**31 + 64, 64), "tokens": (64, 2**23)}[axis]
    memory = torch.empty(2**31 + 2**28 + 2**20, dtype=torch.float16, device="cuda")
    student = memory.as_strided((1, 2, 280, 64), (1, *apart, 1))
    student.copy_(randn(1, 2, 280, 64))
    teacher = randn(1, 2, 280, 64, device="cuda").half()
    upstream = randn(1, 2, 280, device="cuda")
    copy = student.detach().clone(memory_format=torch.contiguous_format)
    ours = of_relation(student, teacher, upstream, "triton")
    plain = of_relation(copy, teacher, upstream, "triton")
    for x, y in zip(ours, plain, strict=True):
        # Not equal bits: Hopper's own kernels may take one of the layouts and not the other.
        assert (x - y).norm() <= 2 * torch.finfo(torch.float16).eps * y.norm()
    flipped = of_relation(copy, student, upstream, "triton")
    assert flipped[0].abs().max() <= 1e-6


@gpu
@needs_gpu
def test_auto_takes_triton_where_it_can(launches) -> None:
    x = randn(1, 1, 20, 16, device="cuda")
    relation_kl(x, x)
    assert launches == ["self_forward_kernel"]
    relation_kl(x.double(), x.double())
    relation_kl(randn(1, 1, 2, 257, device="cuda"), randn(1, 1, 2, 257, device="cuda"))
    assert launches == ["self_forward_kernel"]


def packed(*lengths: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


@pytest.mark.parametrize(
    ("segments", "padding", "expected"),
    [
        pytest.param(packed(300), 0, [(0, 300)] * 5, id="one-document"),
        pytest.param(packed(128, 192), 0, [(0, 128)] * 2 + [(128, 320)] * 3, id="at-granules"),
        pytest.param(packed(100, 220), 0, [(0, 64), (), *[(128, 320)] * 3], id="in-a-granule"),
        pytest.param(packed(300), 50, [(0, 192)] * 3 + [(), ()], id="padding"),
        pytest.param(packed(64, 64, 64) % 2, 0, [(0, 64), (64, 128), (128, 192)], id="again"),
    ],
)
def test_tiles_without_a_look_at_masks_are_those_within_a_document(
    segments: Tensor, padding: int, expected: list[tuple[int, ...]], device: str
) -> None:
    real = torch.ones_like(segments, dtype=torch.bool)
    real[:, real.shape[1] - padding :] = False
    x = torch.zeros(1, 1, segments.shape[1], 16, device=device)
    masks = backend._masks(segments.to(device), real.to(device), x)
    found = [
        (first, stop) if first < stop else () for first, stop in masks.reach[0, :, 2:].tolist()
    ]
    assert found == expected


def test_no_tile_is_trusted_in_which_a_mask_hides_something(device: str) -> None:
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 640, 16, device=device)
    for _ in range(20):
        numbers = torch.randint(0, 3, (10,)).repeat_interleave(torch.randint(1, 130, (10,)))
        segments = torch.nn.functional.pad(numbers, (0, 640))[None, :640].to(device)
        real = (torch.rand(1, 640, device=device) < 0.999) | (segments == 1)
        reach = backend._masks(segments, real, x).reach[0].tolist()
        agree = (segments[0, :, None] == segments[0]) & real[0, :, None] & real[0]
        for granule, (first, stop, sure_first, sure_stop) in enumerate(reach):
            own = slice(64 * granule, 64 * granule + 64)
            assert agree[own, sure_first:sure_stop].all()
            assert not agree[own, :first].any()
            assert not agree[own, stop:].any()
