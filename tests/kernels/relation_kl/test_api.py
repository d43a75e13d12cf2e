"""The operator's face: refusals, choice of a backend, reductions, sets and relation heads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernels.relation_kl import (
    api,
    attention_kl,
    relation_kl,
    relation_kl_set,
    split_relation_heads,
)

ROOT = Path(__file__).parents[3]
X = torch.zeros(2, 4, 6, 8)
BACKENDS = pytest.mark.parametrize("backend", ["chunked", "reference"])


def make(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


BAD_TENSORS = {
    "not-a-tensor": ([1.0], X, "student_bhtd: got list; it must be a tensor"),
    "three-axes": (X[0], X[0], r"student_bhtd: got shape \[4, 6, 8\]"),
    "empty": (X[:0], X[:0], "none of them 0"),
    "integers": (X.int(), X, "student_bhtd: got dtype int32; it must be one of float32"),
    "complex-teacher": (X, X.cfloat(), "teacher_bhtd: got dtype complex64"),
    "batches": (X, X[:1], r"teacher_bhtd: got batch = 1 .* must be 2, as in student_bhtd"),
    "heads": (X, X[:, :2], "teacher_bhtd: got heads = 2"),
    "tokens": (X, X[:, :, :5], "teacher_bhtd: got tokens = 5"),
    "layouts": (X, X.to_sparse(), "teacher_bhtd: got layout torch.sparse_coo"),
    "devices": (X, X.to("meta"), "teacher_bhtd: got device meta; it must be cpu"),
    "no-data": (X.to("meta"), X.to("meta"), "student_bhtd: got device meta; .* holds data"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_refuses_tensors(case) -> None:
    student, teacher, message = BAD_TENSORS[case]
    with pytest.raises(ValueError, match=message):
        relation_kl(student, teacher)


BAD_OPTIONS = {
    "scale-zero": ({"scale": 0.0}, "scale: got 0.0; it must be a finite number > 0"),
    "scale-nan": ({"scale": float("nan")}, "scale: got nan"),
    "scale-huge": ({"scale": 10**400}, "scale: got 10+; it must be a finite number"),
    "scale-ratio": (
        {"scale": 1e300, "temperature": 1e-300},
        "scale: got 1e[+]300 with temperature=1e-300; their ratio must be finite",
    ),
    "causal": ({"causal": "no"}, "causal: got 'no'; it must be True or False"),
    "allow-tf32": ({"allow_tf32": None}, "allow_tf32: got None; it must be True or False"),
    "window-huge": ({"window": 2**63}, "window: got 9223372036854775808"),
    "teacher-scale": ({"teacher_scale": -1}, "teacher_scale: got -1"),
    "temperature-zero": ({"temperature": 0}, "temperature: got 0; it must be a finite number > 0"),
    "temperature-text": ({"temperature": "1"}, "temperature: got '1'"),
    "temperature-bool": ({"temperature": True}, "temperature: got True"),
    "window-zero": ({"window": 0}, "window: got 0; it must be None or an integer >= 1"),
    "window-float": ({"window": 2.0}, "window: got 2.0"),
    "window-bool": ({"window": True}, "window: got True"),
    "window-not-causal": ({"window": 2, "causal": False}, "a window needs causal=True"),
    "segments-list": ({"segment_ids": [[0]]}, "segment_ids: got list"),
    "segments-shape": (
        {"segment_ids": torch.zeros(6, dtype=torch.int64)},
        r"segment_ids: got shape \[6\]; it must be \[batch, tokens\] = \[2, 6\]",
    ),
    "segments-float": (
        {"segment_ids": torch.zeros(2, 6)},
        "segment_ids: got dtype float32; it must be an integer dtype",
    ),
    "segments-device": (
        {"segment_ids": torch.zeros(2, 6, dtype=torch.int64, device="meta")},
        "segment_ids: got device meta",
    ),
    "key-mask-shape": (
        {"key_mask": torch.ones(2, 4, dtype=torch.bool)},
        r"key_mask: got shape \[2, 4\]",
    ),
    "key-mask-integer": (
        {"key_mask": torch.ones(2, 6, dtype=torch.int64)},
        "key_mask: got dtype int64; it must be bool",
    ),
    "reduction": ({"reduction": "avg"}, "reduction: got 'avg'; it must be one of mean, sum, none"),
    "backend": ({"backend": "cuda"}, "backend: got 'cuda'; it must be one of auto, triton"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_refuses_options(case) -> None:
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        relation_kl(X, X, **options)
    with pytest.raises(ValueError, match=message):
        attention_kl(X, X, X, X, **options)
    with pytest.raises(ValueError, match=message):
        relation_kl_set([X], [X], [1.0], **options)


BAD_ATTENTION = {
    "key-heads": ((X, X[:, :3], X, X), "k_student: got 3 heads; their number must divide .* 4"),
    "teacher-key-heads": ((X, X, X, X[:, :3]), "k_teacher: got 3 heads"),
    "key-head-size": ((X, X[..., :4], X, X), "k_student: got head_dim = 4"),
    "key-tokens": ((X, X[:, :, :2], X, X), "k_student: got tokens = 2"),
    "key-dtype": (
        (X, X.half(), X, X),
        "k_student: got dtype float16; it must be that of q_student",
    ),
    "query-heads": ((X, X, X[:, :2], X[:, :2]), "q_teacher: got heads = 2"),
    "no-data": ((X.to("meta"),) * 4, "q_student: got device meta; it must be one that holds data"),
}


@pytest.mark.parametrize("case", BAD_ATTENTION)
def test_refuses_attention_tensors(case) -> None:
    tensors, message = BAD_ATTENTION[case]
    with pytest.raises(ValueError, match=message):
        attention_kl(*tensors)


BAD_SETS = {
    "none": (([], [], []), {}, "students: got none"),
    "teachers": (([X], [X, X], [1.0]), {}, "teachers: got 2; it must have as many"),
    "weights": (([X], [X], [1.0, 1.0]), {}, "weights: got 2"),
    "weights-missing": (([X], [X], None), {}, "weights: got NoneType; it must be a sequence"),
    "negative-weight": (([X, X], [X, X], [1, -1.0]), {}, r"weights\[1\]: got -1.0"),
    "infinite-weight": (([X], [X], [float("inf")]), {}, r"weights\[0\]: got inf"),
    "second-pair": (([X, X], [X, X[:, :2]], [1, 1]), {}, r"teachers\[1\]: got heads = 2"),
    "lengths": (([X, X[:, :, :2]], [X, X[:, :, :2]], [1, 1]), {}, r"students\[1\]: got tokens = 2"),
    "rows": (([X], [X], [1.0]), {"reduction": "none"}, "reduction: got 'none'"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_refuses_sets(case) -> None:
    arguments, options, message = BAD_SETS[case]
    with pytest.raises(ValueError, match=message):
        relation_kl_set(*arguments, **options)


@BACKENDS
def test_reductions_agree(backend) -> None:
    student, teacher = make(2, 3, 20, 4), make(2, 3, 20, 4, seed=1)
    real = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    options = {"backend": backend, "key_mask": real}
    rows = relation_kl(student, teacher, reduction="none", **options)
    total = relation_kl(student, teacher, reduction="sum", **options)
    mean = relation_kl(student, teacher, **options)
    assert rows.shape == (2, 3, 20)
    assert not rows[~real[:, None].expand_as(rows)].any()
    torch.testing.assert_close(total, rows.sum())
    torch.testing.assert_close(mean, rows.sum() / (3 * real.sum()))


@BACKENDS
def test_a_batch_of_padding_has_loss_and_gradient_zero(backend) -> None:
    student, teacher = make(2, 3, 10, 4, grad=True), make(2, 3, 10, 4, seed=1)
    loss = relation_kl(
        student, teacher, key_mask=torch.zeros(2, 10, dtype=torch.bool), backend=backend
    )
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_results_are_float32_and_gradients_have_the_input_dtype(backend, dtype) -> None:
    student = make(1, 2, 10, 4).to(dtype).requires_grad_()
    teacher = make(1, 2, 10, 4, seed=1).to(dtype)
    for reduction in ("mean", "sum", "none"):
        loss = relation_kl(student, teacher, reduction=reduction, backend=backend)
        assert loss.dtype is torch.float32
        assert torch.autograd.grad(loss.sum(), student)[0].dtype is dtype


@BACKENDS
def test_the_teacher_gets_no_gradient(backend) -> None:
    student, teacher = make(1, 2, 10, 4, grad=True), make(1, 2, 10, 4, seed=1, grad=True)
    relation_kl(student, teacher, backend=backend).backward()
    attention_kl(student, student, teacher, teacher, backend=backend).backward()
    relation_kl_set([student], [teacher], [1.0], backend=backend)[0].backward()
    assert student.grad is not None
    assert teacher.grad is None


@BACKENDS
def test_temperature_divides_the_scores_and_nothing_else(backend) -> None:
    student, teacher = make(1, 2, 10, 4), make(1, 2, 10, 9, seed=1)
    warm = relation_kl(student, teacher, temperature=2.5, backend=backend)
    scaled = relation_kl(
        student, teacher, scale=0.5 / 2.5, teacher_scale=1 / 3 / 2.5, backend=backend
    )
    torch.testing.assert_close(warm, scaled)


@BACKENDS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_set_is_the_weighted_sum_of_its_relations(backend, reduction) -> None:
    shapes = [(2, 6, 30, 4), (2, 2, 30, 4), (2, 3, 30, 7)]
    students = [make(*shape, seed=r, grad=True) for r, shape in enumerate(shapes)]
    teachers = [make(*shape, seed=9 + r) for r, shape in enumerate(shapes)]
    weights = [1.0, 0.25, 0]
    real = torch.ones(2, 30, dtype=torch.bool)
    real[0, 20:] = False
    options = {"backend": backend, "reduction": reduction, "key_mask": real, "temperature": 1.5}
    loss, by_relation = relation_kl_set(students, teachers, weights, **options)
    single = [relation_kl(s, t, **options) for s, t in zip(students, teachers, strict=True)]
    expected = sum(w * x for w, x in zip(weights, single, strict=True))
    assert not by_relation.requires_grad
    torch.testing.assert_close(by_relation, torch.stack(single).detach())
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, students)
    for gradient, plain in zip(ours, torch.autograd.grad(expected, students), strict=True):
        torch.testing.assert_close(gradient, plain)


INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="not interpreted here")
once_derivable = pytest.mark.parametrize(
    "backend", ["chunked", pytest.param("triton", marks=INTERPRETED)]
)


@once_derivable
@pytest.mark.parametrize("function", ["relation", "attention"])
def test_a_second_derivative_is_refused_not_left_out(backend, function, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, y = make(1, 1, 5, 8).float().requires_grad_(), make(1, 1, 5, 8, seed=1).float()
    tensors = (x, y) if function == "relation" else (x, x, y, y)
    loss = (relation_kl if function == "relation" else attention_kl)(*tensors, backend=backend)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"'{backend}' has no second derivative"):
        (loss + gradient.norm()).backward()


@once_derivable
@pytest.mark.parametrize("function", ["relation", "attention"])
def test_a_forward_mode_derivative_is_refused_not_zero(backend, function, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, y = make(1, 1, 5, 8).float(), make(1, 1, 5, 8, seed=1).float()

    def loss(x: Tensor, backend: str) -> Tensor:
        if function == "relation":
            return relation_kl(x, y, backend=backend)
        return attention_kl(x, x, y, y, backend=backend)

    with forward_ad.dual_level():
        x = forward_ad.make_dual(x, x)
        # Torch itself refuses what has no rule, but for operators, which it takes for constants.
        refusal = {"chunked": "jvp function", "triton": "'triton' has no forward-mode derivative"}
        with pytest.raises(NotImplementedError, match=refusal[backend]):
            loss(x, backend)
        tangent = forward_ad.unpack_dual(loss(x, "reference")).tangent
    assert tangent is not None
    assert tangent != 0


@INTERPRETED
def test_a_compiled_forward_mode_derivative_is_refused_not_zero(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, y = make(1, 1, 5, 8).float(), make(1, 1, 5, 8, seed=1).float()

    def tangent(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: relation_kl(x, y, backend="triton"), (x,), (x,))[1]

    torch._dynamo.reset()
    with pytest.raises(NotImplementedError, match="'triton' has no forward-mode derivative"):
        torch.compile(tangent, backend="aot_eager")(x)


def test_split_relation_heads_concatenates_and_splits() -> None:
    x = make(2, 6, 5, 4)
    split = split_relation_heads(x, 3)
    assert split.shape == (2, 3, 5, 8)
    torch.testing.assert_close(split[:, 1], torch.cat([x[:, 2], x[:, 3]], dim=-1))
    assert torch.equal(split_relation_heads(x, 6), x)
    assert torch.equal(split_relation_heads(split, 6), x)


@pytest.mark.parametrize("relation_heads", [0, -2, 5, 2.0, True])
def test_split_relation_heads_refuses(relation_heads) -> None:
    with pytest.raises(ValueError, match=r"divides heads \* head_dim = 6 \* 4 = 24"):
        split_relation_heads(make(2, 6, 5, 4), relation_heads)


def test_models_of_different_heads_and_width_compare_by_relation_heads() -> None:
    student, teacher = make(1, 3, 12, 8, grad=True), make(1, 4, 12, 16)
    loss = relation_kl(split_relation_heads(student, 2), split_relation_heads(teacher, 2))
    loss.backward()
    assert loss > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


class TestTritonBackend:
    """Where it cannot run, asking for it by name raises, and `auto` does without it."""

    def test_without_the_package(self, monkeypatch) -> None:
        monkeypatch.setattr(api, "_TRITON_IS_INSTALLED", False)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(RuntimeError, match="the package 'triton' is not installed"):
            relation_kl(X, X, backend="triton")
        assert relation_kl(X, X) == 0

    def test_off_its_device(self, monkeypatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(
            RuntimeError, match="'triton' cannot run here: the tensors are on 'cpu'"
        ):
            relation_kl(X, X, backend="triton")

    @pytest.mark.parametrize("interpreted", ["0", "1"])
    def test_refuses_float64(self, interpreted, monkeypatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        for student, teacher in ((X.double(), X), (X, X.double())):
            with pytest.raises(RuntimeError, match="float64; use 'chunked' or 'reference'"):
                relation_kl(student, teacher, backend="triton")
            assert relation_kl(student, teacher) == 0

    def test_refuses_heads_that_do_not_fit(self) -> None:
        x = torch.zeros(1, 1, 2, 257)
        with pytest.raises(RuntimeError, match="head sizes to 256, and got head_dim = 257"):
            relation_kl(x, x, backend="triton")

    def test_refuses_bfloat16_in_the_interpreter(self, monkeypatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        x = X.bfloat16()
        with pytest.raises(RuntimeError, match="interpreter multiplies bfloat16 wrongly"):
            relation_kl_set([X, x], [X, X], [1.0, 1.0], backend="triton")
        with pytest.raises(RuntimeError, match="interpreter multiplies bfloat16 wrongly"):
            attention_kl(X, X, x, x, backend="triton")

    def test_interpreter_lifts_the_device_check(self, monkeypatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert api._triton_obstacle([X]) is None

    def test_an_interpreter_asked_for_too_late_is_refused(self) -> None:
        code = """
import os, torch
os.environ.pop("TRITON_INTERPRET", None)
import triton
from kernels.relation_kl import relation_kl
os.environ["TRITON_INTERPRET"] = "1"
x = torch.zeros(1, 1, 2, 2)
try:
    relation_kl(x, x, backend="triton")
except RuntimeError as error:
    print(error)
"""
        command = [sys.executable, "-c", code]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert "imported before TRITON_INTERPRET=1 was set" in finished.stdout


def test_backends_are_imported_when_used_and_never_import_each_other() -> None:
    """Each backend in a fork of a process that has not loaded the other."""
    code = """
import os, sys, torch
from kernels.relation_kl import relation_kl
def loaded():
    return {m for m in ("reference", "chunked") if f"kernels.relation_kl.{m}" in sys.modules}
assert loaded() == set() and not {"triton", "transformers"} & set(sys.modules)
for backend in ("chunked", "reference"):
    if os.fork() == 0:
        x = torch.zeros(1, 1, 2, 2)
        relation_kl(x, x, backend=backend)
        os._exit(loaded() != {backend})
    assert os.wait()[1] == 0, backend
"""
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
