"""Attention computed from captured tensors by plain formulas, to compare a model's own with."""

from __future__ import annotations

import torch
from torch import Tensor

from src.objectives.base import QKV


def attention_output(
    layer: QKV,
    *,
    scale: float | None = None,
    window: int | None = None,
    key_mask_bt: Tensor | None = None,
) -> Tensor:
    """Causal attention recomputed from captured tensors, [b, h, t, d].

    It shares nothing with the kernels that the model uses.

    Args:
        layer: captured tensors.
        scale: factor on the scores, by default head_dim ** -0.5.
        window: a query at i sees keys j with i - j < window; by default all before it.
        key_mask_bt: true for real tokens; rows that see none give zeros.
    """
    q_bhtd = layer.q_bhtd
    group, tokens = q_bhtd.shape[1] // layer.k_bgtd.shape[1], q_bhtd.shape[2]
    k_bhtd = layer.k_bgtd.repeat_interleave(group, dim=1)
    v_bhtd = layer.v_bgtd.repeat_interleave(group, dim=1)
    at = torch.arange(tokens, device=q_bhtd.device)
    behind_tt = at[:, None] - at[None, :]
    seen = (behind_tt >= 0) & (behind_tt < (window or tokens))
    if key_mask_bt is not None:
        seen = seen & key_mask_bt[:, None, None, :].bool()
    scores = q_bhtd @ k_bhtd.mT * (q_bhtd.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return weights @ v_bhtd
