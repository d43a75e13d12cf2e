"""How far a scaling moves the attention of each layer, measured before training.

Shapes: b batch, t tokens, h query heads, g key-value heads, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.relation_kl import attention_kl
from src.models.facts import ModelFacts
from src.passes.capture import QKVCapture

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attention_drift(
    native: PreTrainedModel,
    scaled: PreTrainedModel,
    ids_bt: Tensor,
    facts: ModelFacts,
    device: torch.device,
) -> list[float]:
    """KL(native || scaled) of each layer's attention rows, mean over rows and heads, in nats.

    Args:
        native: with native RoPE, loaded with capture.
        scaled: the same weights under the scaling, loaded with capture.
        ids_bt: calibration text, [b, t] within the native window.
        device: where they are run, one after the other; then they go back to where they were.
    """
    before = _queries_and_keys(native, ids_bt, facts, device)
    after = _queries_and_keys(scaled, ids_bt, facts, device)
    drift: list[float] = []
    for layer, window in enumerate(facts.windows):
        sides = (x.to(device) for x in (*after[layer], *before[layer]))
        kl = attention_kl(*sides, scale=facts.scale, teacher_scale=facts.scale, window=window)
        drift.append(float(kl))
    return drift


def _queries_and_keys(
    network: PreTrainedModel, ids_bt: Tensor, facts: ModelFacts, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Each layer's queries [b, h, t, d] and keys [b, g, t, d], on the CPU."""
    home = next(network.parameters()).device
    network.to(device)  # type: ignore[arg-type]  # transformers narrows nn.Module.to
    capture = QKVCapture(range(facts.layers))
    with torch.no_grad(), capture.running():
        network.get_decoder()(input_ids=ids_bt.to(device), use_cache=False)
    network.to(home)  # type: ignore[arg-type]  # as above
    taken = capture.take()
    return [(taken[i].q_bhtd.cpu(), taken[i].k_bgtd.cpu()) for i in range(facts.layers)]
