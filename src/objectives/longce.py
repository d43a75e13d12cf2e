"""LongCE (2410.23771): next-token loss weighted towards tokens that need long context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Objective, Outputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LongCE(Objective):
    """Mean over predicted tokens of weight times cross-entropy, natural logarithm.

    With p the student's probability of a token, given all tokens before it, and s the teacher's,
    given the latest ones only,

        weight = min(p / s, most),   without a gradient

    so a token weighs more, the more the long context helps. The paper takes both probabilities from
    the trained model. Here the short one is the native model's, which needs no third pass.

    Attributes:
        short_context: tokens, an even number. The teacher reads blocks in overlapping chunks of
            this many, so it predicts each token from half as many or more (src/passes/chunks.py).
            4096 in the paper.
        most: the largest weight, 5 in the paper.
        chunk: how many tokens' logits exist at once.
    """

    type: Literal["longce"]
    short_context: Annotated[int, Field(gt=0, multiple_of=2)] = 4096
    most: Annotated[float, Field(gt=0)] = 5.0
    chunk: Annotated[int, Field(gt=0)] = 2048

    def needs(self, facts: ModelFacts) -> Needs:
        """Both models' last hidden states and heads; the teacher reads chunks."""
        return Needs(
            teacher=True,
            hidden=True,
            head=True,
            teacher_head=True,
            teacher_chunk=self.short_context,
        )

    def check(self, length: int, *, cuda: bool) -> None:
        """Refuse blocks that are no longer than the short context.

        Raises:
            ValueError: no token of the block has a longer context.
        """
        if self.short_context >= length:
            raise ValueError(
                f"short_context={self.short_context} is not shorter than a block's {length} "
                "tokens: give an even number below that"
            )

    def needs_whole_blocks(self) -> str:
        """`short_context`: a chunk's tokens are on several ranks."""
        return f"short_context={self.short_context}"

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the b * (t - 1) predicted tokens.

        Metrics: `longce`, the loss; `longce/next_token`, the unweighted one; `longce/weight`, the
        mean weight.
        """
        import torch
        from torch.nn import functional

        from src.objectives.chunks import summed_by_chunks

        assert teacher is not None
        (student_bth, ours), (teacher_bth, theirs) = student.last, teacher.last

        def losses(logits_1cv: Tensor, targets_1c: Tensor) -> Tensor:
            wide = torch.promote_types(logits_1cv.dtype, torch.float32)
            return functional.cross_entropy(
                logits_1cv.flatten(0, 1).to(wide), targets_1c.flatten(), reduction="none"
            )

        def summed(student_1ch: Tensor, teacher_1ch: Tensor, targets_1c: Tensor) -> Tensor:
            with torch.no_grad():
                short_c = losses(theirs(teacher_1ch), targets_1c)
            long_c = losses(ours(student_1ch), targets_1c)
            weight_c = (short_c - long_c.detach()).exp().clamp(max=self.most)
            return torch.stack([(weight_c * long_c).sum(), long_c.detach().sum(), weight_c.sum()])

        n = batch.input_ids_bt[:, 1:].numel()
        hidden = (x[:, :-1].reshape(1, n, -1) for x in (student_bth, teacher_bth))
        targets_1n = batch.input_ids_bt[:, 1:].reshape(1, n)
        loss, plain, weight = summed_by_chunks(summed, (*hidden, targets_1n), chunk=self.chunk).div(
            n
        )
        named = {"longce": loss, "longce/next_token": plain, "longce/weight": weight}
        return loss, {name: value.detach() for name, value in named.items()}


OBJECTIVE = LongCE
