"""Distillation of next-token distributions: forward or reverse KL, or Jensen-Shannon divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Objective, Outputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LogitDistillation(Objective):
    """Divergence of the student's from the teacher's token distributions, mean over tokens, nats.

    With p the teacher's and q the student's softmax(logits / temperature) of a token:

        forward   KL(p || q)
        reverse   KL(q || p)
        jsd       KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

    It is not multiplied by temperature ** 2. Both models' logits are computed `chunk` tokens at a
    time, and again for the backward pass.

    Attributes:
        last_tokens: how many tokens at the end of each block are compared; null for all.
            LinearARD's public code has such a term on the last 512, by default at weight 0.
    """

    type: Literal["logit_distillation"]
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    last_tokens: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    chunk: Annotated[int, Field(gt=0)] = 2048

    def needs(self, facts: ModelFacts) -> Needs:
        """A teacher, and both models' last hidden states and output heads."""
        return Needs(teacher=True, hidden=True, head=True, teacher_head=True)

    def check(self, length: int, *, cuda: bool) -> None:
        """Refuse more last tokens than a block has.

        Raises:
            ValueError: `last_tokens` exceeds the length.
        """
        if self.last_tokens is not None and self.last_tokens > length:
            raise ValueError(
                f"last_tokens={self.last_tokens} is more than a block's {length}: give at most "
                f"{length}, or null for all"
            )

    def needs_whole_blocks(self) -> str | None:
        """`last_tokens`: the end of a block is on one rank."""
        return None if self.last_tokens is None else f"last_tokens={self.last_tokens}"

    def needs_whole_documents(self) -> str | None:
        """`last_tokens`: the end of a packed block may be a document's beginning."""
        return self.needs_whole_blocks()

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the tokens that are compared."""
        import torch

        from src.objectives.chunks import summed_by_chunks

        assert teacher is not None
        (student_bth, ours), (teacher_bth, theirs) = student.last, teacher.last

        def summed(student_1ch: Tensor, teacher_1ch: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_logp_1cv = self._log_softmax(theirs(teacher_1ch))
            student_logp_1cv = self._log_softmax(ours(student_1ch))
            return _divergence(self.divergence, teacher_logp_1cv, student_logp_1cv).sum()

        # The compared tokens of all blocks in a row, [1, n, hidden].
        kept = slice(-self.last_tokens if self.last_tokens else None, None)
        inputs = tuple(x[:, kept].flatten(0, 1)[None] for x in (student_bth, teacher_bth))
        total = summed_by_chunks(summed, inputs, chunk=self.chunk)
        loss = total / inputs[0].shape[1]
        return loss, {"logit_distillation": loss.detach()}

    def _log_softmax(self, logits_1cv: Tensor) -> Tensor:
        import torch

        wide = torch.promote_types(logits_1cv.dtype, torch.float32)
        return (logits_1cv.to(wide) / self.temperature).log_softmax(-1)


def _divergence(kind: str, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """By token, from logarithms of probabilities over the last axis."""
    if kind == "forward":
        return _kl(teacher_logp, student_logp)
    if kind == "reverse":
        return _kl(student_logp, teacher_logp)
    middle = teacher_logp.logaddexp(student_logp) - math.log(2.0)
    return 0.5 * (_kl(teacher_logp, middle) + _kl(student_logp, middle))


def _kl(p_log: Tensor, q_log: Tensor) -> Tensor:
    return (p_log.exp() * (p_log - q_log)).sum(-1)


OBJECTIVE = LogitDistillation
