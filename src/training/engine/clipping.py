"""Clipping on the device, so that the host never waits for a gradient norm.

DeepSpeed takes a norm of each parameter, looks at each for values that are not finite, and makes
the host wait for the result before it launches the update. A small model's GPU idles meanwhile.
Here one norm of the rank's flat gradient decides on the device: fused AdamW skips an update whose
`found_inf` is set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def skip_unless_finite(optimizer: Any, norm: Tensor) -> None:
    """Let fused AdamW decide on the device: an update whose norm is not finite changes nothing."""
    optimizer.found_inf = (~norm.isfinite()).float()


class DeviceClipping:
    """Clips the global gradient norm before each update, and skips updates that are not finite.

    Args:
        optimizer: fused AdamW with one parameter group, whose gradients are this rank's shard.
        max_norm: of the gradients of all ranks together.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        assert len(optimizer.param_groups) == 1
        self._max_norm = max_norm
        self.norm: Tensor | float = 0.0
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        gradients = [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        square = norms.square().sum()
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(square)
        norm = square.sqrt()
        skip_unless_finite(optimizer, norm)
        factor = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        self.norm = norm
