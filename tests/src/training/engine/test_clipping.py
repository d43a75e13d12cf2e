"""Clipping on the device is that of torch, and an update that is not finite does nothing."""

from __future__ import annotations

import pytest
import torch

from src.training.engine.clipping import DeviceClipping


def fused(size: int = 7, max_norm: float = 0.5) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    parameter = torch.nn.Parameter(torch.arange(size, dtype=torch.float32))
    adamw = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1, fused=True)
    adamw.clipping = DeviceClipping(adamw, max_norm)  # type: ignore[attr-defined]
    return parameter, adamw


@pytest.mark.parametrize("size_of_gradient", [0.01, 3.0], ids=["below", "above"])
def test_updates_are_those_of_clipped_gradients(size_of_gradient: float) -> None:
    parameter, adamw = fused()
    plain = torch.nn.Parameter(parameter.detach().clone())
    expected = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradient = size_of_gradient * torch.randn(7, generator=generator)
        parameter.grad, plain.grad = gradient.clone(), gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([plain], 0.5)
        adamw.step()
        expected.step()
        torch.testing.assert_close(adamw.clipping.norm, norm)  # type: ignore[attr-defined]
        torch.testing.assert_close(parameter, plain)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    parameter, adamw = fused()
    parameter.grad = torch.ones(7)
    adamw.step()
    before, state = parameter.detach().clone(), adamw.state[parameter]
    moments = state["exp_avg"].clone(), state["step"].clone()
    parameter.grad = torch.tensor([1.0, bad, 1.0, 1.0, 1.0, 1.0, 1.0])
    adamw.step()
    assert not torch.isfinite(adamw.clipping.norm)  # type: ignore[attr-defined]
    assert torch.equal(parameter, before)
    assert torch.equal(state["exp_avg"], moments[0])
    assert torch.equal(state["step"], moments[1])
    parameter.grad = torch.ones(7)
    adamw.step()
    assert not torch.equal(parameter, before)
    assert torch.isfinite(parameter).all()
