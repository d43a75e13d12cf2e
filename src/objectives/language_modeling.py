"""Next-token prediction: continual pre-training, and the second stage of LinearARD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Objective, Outputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LanguageModeling(Objective):
    """Mean cross-entropy of each next token, natural logarithm.

    The logits are computed `chunk` tokens at a time, and again for the backward pass, so that no
    [t, vocabulary] float32 tensor exists for a long block.
    """

    type: Literal["language_modeling"]
    chunk: Annotated[int, Field(gt=0)] = 2048

    def needs(self, facts: ModelFacts) -> Needs:
        """The output head; no teacher and no captured tensors."""
        return Needs(teacher=False, head=True)

    def needs_whole_blocks(self) -> None:
        """No setting: a part comes with the token after each of its tokens."""

    def needs_whole_documents(self) -> None:
        """No setting: packed blocks come with the token after each of their tokens."""

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the b * (t - 1) predicted tokens; in packed blocks, over `Batch.predicted`.

        On a part of the blocks, it is the part's sum divided by an equal share of the predicted
        tokens, so that the mean over the parts is the loss of the blocks.
        """
        from torch.nn import functional

        from src.objectives.chunks import summed_by_chunks

        b, t = batch.input_ids_bt.shape
        hidden_bth, head = student.last

        def summed(part_1ch: Tensor, targets_1c: Tensor) -> Tensor:
            logits_cv = head(part_1ch).flatten(0, 1).float()
            # By default it ignores -100, which stands after a block's last token.
            return functional.cross_entropy(logits_cv, targets_1c.flatten(), reduction="sum")

        if batch.next_ids_bt is None:
            inputs_1nh = hidden_bth[:, :-1].reshape(1, b * (t - 1), -1)
            targets_1n = batch.input_ids_bt[:, 1:].reshape(1, -1)
        else:
            # The token after a part's last one is on another rank.
            inputs_1nh = hidden_bth.reshape(1, b * t, -1)
            targets_1n = batch.next_ids_bt.reshape(1, -1)
        total = summed_by_chunks(summed, (inputs_1nh, targets_1n), chunk=self.chunk)
        if batch.predicted is None:
            loss = total / (b * (t * batch.parts - 1) / batch.parts)
        else:
            loss = total / batch.predicted
        return loss, {"language_modeling": loss.detach()}


OBJECTIVE = LanguageModeling
