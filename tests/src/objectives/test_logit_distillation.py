"""Divergences of token distributions against the formulas in float64, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Outputs
from src.objectives.logit_distillation import LogitDistillation

B, T, WIDTH, VOCABULARY = 2, 9, 5, 23
FACTS = ModelFacts(layers=1, windows=(None,), heads=1, kv_heads=1, head_dim=5)
BATCH = Batch(torch.zeros(B, T, dtype=torch.int64))


class Side:
    """Hidden states and a head, both with gradients."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
        self.hidden = torch.randn(B, T, WIDTH, generator=generator).to(dtype).requires_grad_()
        self.sizes: list[int] = []

    def outputs(self) -> Outputs:
        def head(hidden: Tensor) -> Tensor:
            self.sizes.append(hidden[..., 0].numel())
            return self.head(hidden)

        return Outputs(self.hidden, head=head)

    def probabilities(self, temperature: float) -> Tensor:
        scores = (self.hidden.double() @ self.head.weight.double().T / temperature).exp()
        return scores / scores.sum(-1, keepdim=True)


def by_the_formula(
    kind: str, student: Side, teacher: Side, *, last: int | None, temperature: float
) -> Tensor:
    p = teacher.probabilities(temperature).detach()[:, -(last or T) :]
    q = student.probabilities(temperature)[:, -(last or T) :]

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    m = (p + q) / 2
    found = {"forward": kl(p, q), "reverse": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}
    return found[kind].mean()


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("last", [None, 1, 4, 50])
@pytest.mark.parametrize("chunk", [3, 2048])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradients_are_the_formulas(
    kind: str, last: int | None, chunk: int, temperature: float
) -> None:
    student, teacher = Side(1), Side(2)
    objective = LogitDistillation("logit_distillation", kind, last, temperature, chunk)  # type: ignore[arg-type]  # a literal
    loss, metrics = objective.loss(BATCH, teacher.outputs(), student.outputs(), FACTS)
    expected = by_the_formula(kind, student, teacher, last=last, temperature=temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14)
    inputs = [student.hidden, student.head.weight]
    ours, theirs = (torch.autograd.grad(x, inputs) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-13)
    assert metrics == {"logit_distillation": loss.detach()}


def test_no_more_than_a_chunk_of_logits_exists_at_once() -> None:
    student, teacher = Side(1), Side(2)
    objective = LogitDistillation("logit_distillation", chunk=7)
    loss, _ = objective.loss(BATCH, teacher.outputs(), student.outputs(), FACTS)
    loss.backward()
    assert student.sizes == teacher.sizes == [7, 7, 4, 4, 7, 7], "once forward, once backward"
    assert teacher.hidden.grad is None
    assert teacher.head.weight.grad is None


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_equal_models_diverge_nowhere(kind: str) -> None:
    same = Side(1, torch.bfloat16)
    objective = LogitDistillation("logit_distillation", kind)  # type: ignore[arg-type]  # a literal
    loss, _ = objective.loss(BATCH, same.outputs(), same.outputs(), FACTS)
    assert loss.dtype == torch.float32
    assert abs(loss.item()) < 1e-6


def test_needs_both_heads() -> None:
    needs = LogitDistillation("logit_distillation").needs(FACTS)
    assert (needs.teacher, needs.hidden, needs.head, needs.teacher_head) == (True,) * 4
    assert needs.stops_at is needs.teacher_stops_at is None
