"""A sum of objectives is their values times their weights, from one pass."""

from __future__ import annotations

import pytest
import torch

from src.models.facts import ModelFacts
from src.objectives.base import QKV, Batch, Outputs
from src.objectives.language_modeling import LanguageModeling
from src.objectives.longred import LongRed
from src.objectives.relation import Relation
from src.objectives.weighted_sum import WeightedSum

B, T, H, D, WIDTH = 2, 6, 2, 4, 8
FACTS = ModelFacts(layers=3, windows=(None,) * 3, heads=H, kv_heads=H, head_dim=D)
BATCH = Batch(torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(0)))


def side(seed: int) -> tuple[dict[int, QKV], Outputs]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    qkv = {i: QKV(*(draw(B, H, T, D) for _ in range(3))) for i in range(3)}
    weight = draw(11, WIDTH)
    hidden = {i: draw(B, T, WIDTH) for i in range(3)}
    return qkv, Outputs(draw(B, T, WIDTH), head=lambda x: x @ weight.T, hidden_layers_bth=hidden)


def test_it_is_the_weighted_sum_of_its_parts() -> None:
    parts = (
        ("relation", Relation("relation", layers=(0, 2)), 0.5),
        ("deep", Relation("relation", layers="last"), 2.0),
        ("lm", LanguageModeling("language_modeling"), 3.0),
        ("longred", LongRed("longred", (1, 3)), 5.0),
    )
    whole = WeightedSum(parts)
    needs = whole.needs(FACTS)
    assert needs.qkv_layers == (0, 2)
    assert (needs.teacher, needs.hidden, needs.head, needs.hidden_layers) == (
        True,
        True,
        True,
        (1,),
    )
    student_qkv, student = side(1)
    teacher_qkv, teacher = side(2)

    def run(objective) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        layers = {
            i: objective.layer(i, teacher_qkv[i], student_qkv[i], FACTS)
            for i in objective.needs(FACTS).qkv_layers
        }
        own = Outputs(
            student.hidden_bth,
            layers=layers,
            head=student.head,
            hidden_layers_bth=student.hidden_layers_bth,
        )
        return objective.loss(BATCH, teacher, own, FACTS)

    loss, metrics = run(whole)
    alone = [(run(objective), weight) for _, objective, weight in parts]
    expected = sum(weight * value for (value, _), weight in alone)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    expected_metrics = {
        f"{part}/{key}": value
        for (part, _, _), ((_, reported), _) in zip(parts, alone, strict=True)
        for key, value in reported.items()
    }
    torch.testing.assert_close(metrics, expected_metrics, rtol=0, atol=0)
    leaves = [x for qkv in student_qkv.values() for x in qkv[:3]] + [student.hidden_bth]
    ours, theirs = (
        torch.autograd.grad(x, leaves, allow_unused=True, retain_graph=True)
        for x in (loss, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert whole.flops(T, FACTS) == pytest.approx(sum(o.flops(T, FACTS) for _, o, _ in parts))


def test_drift_reaches_the_part_that_waits_for_it() -> None:
    parts = (
        ("lm", LanguageModeling("language_modeling"), 1.0),
        ("longred", LongRed("longred", "drift", drift_count=2), 5.0),
    )
    whole = WeightedSum(parts)
    assert whole.awaits_drift
    chosen = whole.with_drift([0.1, 0.3, 0.2])
    assert not chosen.awaits_drift
    assert chosen.needs(FACTS).hidden_layers == (2,)
