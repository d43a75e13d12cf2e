"""LongCE against the formula in float64, whatever the chunk; its weights have no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Outputs
from src.objectives.longce import LongCE

B, T, WIDTH, VOCABULARY = 2, 9, 5, 23
FACTS = ModelFacts(layers=1, windows=(None,), heads=1, kv_heads=1, head_dim=5)
BATCH = Batch(torch.randint(0, VOCABULARY, (B, T), generator=torch.Generator().manual_seed(0)))


class Side:
    """Hidden states and a head, both with gradients."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
        hidden = torch.randn(B, T, WIDTH, generator=generator, dtype=torch.float64)
        self.hidden = hidden.requires_grad_()

    @property
    def outputs(self) -> Outputs:
        return Outputs(self.hidden, head=self.head)

    def probabilities(self) -> Tensor:
        """Of each predicted token, [b, t - 1]."""
        scores_btv = (self.hidden[:, :-1] @ self.head.weight.T).exp()
        targets_bt1 = BATCH.input_ids_bt[:, 1:, None]
        return (scores_btv.gather(-1, targets_bt1) / scores_btv.sum(-1, keepdim=True)).squeeze(-1)


@pytest.mark.parametrize("most", [5.0, 1.0, 1e6])
@pytest.mark.parametrize("chunk", [3, 16, 2048])
def test_value_and_gradients_are_the_formulas(chunk: int, most: float) -> None:
    student, teacher = Side(1), Side(2)
    objective = LongCE("longce", most=most, chunk=chunk)
    loss, metrics = objective.loss(BATCH, teacher.outputs, student.outputs, FACTS)
    p, s = student.probabilities(), teacher.probabilities()
    weights = (p / s).detach().clamp(max=most)
    expected = (weights * -p.log()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    inputs = [student.hidden, student.head.weight]
    ours = torch.autograd.grad(loss, inputs, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, inputs), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(metrics["longce/weight"], weights.mean())
    torch.testing.assert_close(metrics["longce/next_token"], -p.log().mean().detach())
    assert not any(metric.requires_grad for metric in metrics.values())
    loss.backward()
    assert teacher.hidden.grad is None
    assert teacher.head.weight.grad is None


def test_blocks_within_the_short_context_are_refused() -> None:
    LongCE("longce", 256).check(257, cuda=False)
    with pytest.raises(ValueError, match="short_context=256 is not shorter than a block's 256"):
        LongCE("longce", 256).check(256, cuda=False)
    assert LongCE("longce", 256).needs_whole_blocks() == "short_context=256"
