"""What a model predicts for tokens of a text, with logits only where they are needed.

Shapes: b rows, t tokens, h hidden size, n scored tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.models.adapters import output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits are computed for this many tokens at once.
_HEAD_CHUNK = 2048


@dataclass(frozen=True)
class SplitModel:
    """A causal language model as decoder and head: logits are computed only where needed."""

    decoder: torch.nn.Module
    head: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel) -> SplitModel:
        """Split a model."""
        return cls(model.get_decoder(), output_head(model))

    def hidden(self, ids_bt: Tensor) -> Tensor:
        """Hidden states before the head, [b, t, h]."""
        return self.decoder(input_ids=ids_bt, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, float32 [..., v]."""
        return self.head(hidden).float()


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, ids_bt: Tensor, last: int, *, reduction: str
) -> Iterator[Tensor]:
    """Negative log-likelihood, in nats, of the last tokens of each row, chunk by chunk.

    A row's first token has no prediction, so `last` is at most t - 1.
    """
    split = SplitModel.of(model)
    hidden = split.hidden(ids_bt)[:, -last - 1 : -1].flatten(0, 1).split(_HEAD_CHUNK)
    targets = ids_bt[:, -last:].flatten().split(_HEAD_CHUNK)
    for hidden_nh, targets_n in zip(hidden, targets, strict=True):
        logits_nv = split.logits(hidden_nh)
        yield torch.nn.functional.cross_entropy(logits_nv, targets_n, reduction=reduction)


@torch.no_grad()
def choice_nll(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Negative log-likelihood, in nats, of the last tokens of each row; their number is by row.

    The model never reads a row's last token, so rows that differ only in it are one input. Inputs
    are padded at the end, which a causal mask hides from scored tokens.
    """
    split = SplitModel.of(model)
    device = next(model.parameters()).device
    inputs = list(dict.fromkeys(tuple(ids[:-1]) for ids, _ in rows))
    longest = max(len(ids) for ids in inputs)
    ids_bt = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in inputs], device=device)
    hidden_bth = split.hidden(ids_bt)
    losses = []
    for ids, scored in rows:
        at = slice(len(ids) - scored - 1, len(ids) - 1)
        logits_nv = split.logits(hidden_bth[inputs.index(tuple(ids[:-1])), at])
        targets_n = torch.tensor(ids[len(ids) - scored :], device=device)
        loss = torch.nn.functional.cross_entropy(logits_nv, targets_n, reduction="sum")
        losses.append(loss.item())
    return losses
