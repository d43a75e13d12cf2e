"""Hidden-state distance against the formula in float64; which layers are chosen; what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Outputs
from src.objectives.longred import LongRed

B, T, WIDTH = 2, 7, 12
FACTS = ModelFacts(layers=4, windows=(None,) * 4, heads=3, kv_heads=1, head_dim=4)
DEEP = replace(FACTS, layers=32, windows=(None,) * 32)
BATCH = Batch(torch.zeros(B, T, dtype=torch.int64))


def draw(seed: int, depth: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Hidden states 0 ... depth."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(B, T, WIDTH, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for _ in range(depth + 1)
    ]


def outputs(states: list[Tensor]) -> Outputs:
    return Outputs(states[-1], hidden_layers_bth=dict(enumerate(states[:-1])))


def by_the_formula(student: list[Tensor], teacher: list[Tensor], numbers: tuple) -> Tensor:
    """Sum over the chosen of the mean over tokens of 1 - s . t / (|s| |t|)."""
    total = torch.zeros((), dtype=torch.float64)
    for n in numbers:
        s, t = student[n].double(), teacher[n].detach().double()
        cosine = (s * t).sum(-1) / (s.square().sum(-1) * t.square().sum(-1)).sqrt()
        total = total + (1 - cosine).sum() / cosine.numel()
    return total


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        ("last", (4,)),
        ("all", (1, 2, 3, 4)),
        ("reference", (1, 2, 4)),
        ((0, 3), (0, 3)),
        ((4,), (4,)),
    ],
    ids=str,
)
def test_value_and_gradients_are_the_formulas(layers: Any, numbers: tuple) -> None:
    student, teacher = draw(1), draw(2)
    objective = LongRed("longred", layers=layers)
    loss, metrics = objective.loss(BATCH, outputs(teacher), outputs(student), FACTS)
    expected = by_the_formula(student, teacher, numbers)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(x, [student[n] for n in numbers]) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    unread = [student[n] for n in range(5) if n not in numbers]
    loss, _ = objective.loss(BATCH, outputs(teacher), outputs(student), FACTS)
    loss.backward()
    assert all(x.grad is None for x in (*unread, *teacher))
    name = "longred_last" if numbers == (4,) else "longred"
    assert metrics[name].item() == pytest.approx(expected.item())
    assert not any(value.requires_grad for value in metrics.values())


def test_bfloat16_is_compared_in_float32() -> None:
    student, teacher = draw(1, dtype=torch.bfloat16), draw(2, dtype=torch.bfloat16)
    loss, _ = LongRed("longred", "all").loss(BATCH, outputs(teacher), outputs(student), FACTS)
    assert loss.dtype == torch.float32
    expected = by_the_formula(student, teacher, (1, 2, 3, 4))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_equal_states_have_no_distance() -> None:
    states = draw(1)
    loss, _ = LongRed("longred", "all").loss(BATCH, outputs(states), outputs(states), FACTS)
    assert abs(loss.item()) < 1e-12


def test_reference_layers_are_the_public_codes_and_scale_with_depth() -> None:
    reference = LongRed("longred")
    assert reference.chosen(DEEP) == (1, 9, 12, 14, 15, 32)
    for depth in (1, 2, 12, 28, 30, 40, 80):
        chosen = reference.chosen(replace(FACTS, layers=depth))
        assert chosen[0] == max(1, round(depth / 32))
        assert chosen[-1] == depth
        assert list(chosen) == sorted(set(chosen))
    assert reference.chosen(replace(FACTS, layers=64)) == (2, 18, 24, 28, 30, 64)


def test_drift_takes_the_layers_that_move_most_and_the_last() -> None:
    objective = LongRed("longred", "drift", drift_count=3)
    assert objective.awaits_drift
    # The last layer's own figure does not count: its hidden states are chosen anyway.
    chosen = objective.with_drift([0.1, 0.7, 0.7, 9.0])
    assert chosen.layers == (2, 3, 4)
    assert not chosen.awaits_drift
    assert objective.with_drift([0.5, 0.1, 0.5, 0.0]).layers == (1, 3, 4)
    assert LongRed("longred", "last").with_drift([1.0] * 4).layers == "last"
    assert len(objective.chosen(FACTS)) == 3, "the plan counts as many before they are known"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"layers=\[\]: give .* from 0 \(embeddings\) to 4"),
        ({"layers": (5,)}, r"layers=\[5\]"),
        ({"layers": (1, 1)}, r"layers=\[1, 1\]"),
        ({"layers": "drift", "drift_count": 5}, "drift_count=5: the model has 4 layers"),
    ],
)
def test_layers_that_the_model_lacks_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LongRed("longred", **settings).needs(FACTS)


def test_needs_end_where_the_last_chosen_layer_begins() -> None:
    middle = LongRed("longred", (1, 2)).needs(FACTS)
    assert (middle.hidden, middle.hidden_layers, middle.stops_at) == (False, (1, 2), 2)
    whole = LongRed("longred").needs(DEEP)
    assert (whole.hidden, whole.hidden_layers) == (True, (1, 9, 12, 14, 15))
    assert whole.stops_at is None
    assert not whole.qkv_layers
