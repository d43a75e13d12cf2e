"""Distance of hidden states: short-text and short-to-long distillation of LongReD (2502.07365).

Hidden states are numbered as transformers numbers `hidden_states`: n comes after n layers, 0 is the
embeddings, and the number of layers stands for what comes after the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, WrapValidator

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Objective, Outputs, list_or_word

if TYPE_CHECKING:
    from torch import Tensor

# Of LLaMA-3-8B's 32, by the public code for 32K.
_REFERENCE, _REFERENCE_DEPTH = (1, 9, 12, 14, 15, 32), 32


@dataclass(frozen=True)
class LongRed(Objective):
    """1 - cosine similarity of the student's and the teacher's hidden states.

    It is averaged over tokens and summed over the chosen hidden states, as in the public code.

    Attributes:
        layers: numbers of the hidden states. `last`: after the final norm. `all`: after each layer.
            `reference`: the public code's 1, 9, 12, 14, 15 and 32 of 32 layers, and for another
            depth the same fractions of it (rounded, at least 1, each once). `drift`: after the
            layers whose attention the scaling moves most, and the last.
        drift_count: how many hidden states `drift` chooses, the last included. LongReD took 6 at
            32K and 3 at 128K.
    """

    type: Literal["longred"]
    layers: Annotated[
        Literal["reference", "all", "last", "drift"] | tuple[Annotated[int, Field(ge=0)], ...],
        WrapValidator(list_or_word),
    ] = "reference"
    drift_count: Annotated[int, Field(ge=2)] = 6

    def chosen(self, facts: ModelFacts) -> tuple[int, ...]:
        """Numbers of the hidden states, ascending.

        Raises:
            ValueError: an empty list, a repeated number, or more than the model has.
        """
        depth = facts.layers
        if self.layers == "last":
            return (depth,)
        if self.layers == "all":
            return tuple(range(1, depth + 1))
        if self.layers == "reference":
            scaled = (max(1, round(n * depth / _REFERENCE_DEPTH)) for n in _REFERENCE)
            return tuple(sorted(set(scaled)))
        if self.layers == "drift":
            if self.drift_count > depth:
                raise ValueError(
                    f"drift_count={self.drift_count}: the model has {depth} layers to choose from"
                )
            # The drift is not measured yet. The plan only needs the number.
            return tuple(range(depth - self.drift_count + 1, depth + 1))
        numbers = tuple(sorted(self.layers))
        if not numbers or len(set(numbers)) < len(numbers) or numbers[-1] > depth:
            raise ValueError(
                f"layers={list(self.layers)}: give 'reference', 'all', 'last', 'drift' or "
                f"different numbers from 0 (embeddings) to {depth} (after the final norm)"
            )
        return numbers

    def with_drift(self, kl_by_layer: Sequence[float]) -> LongRed:
        """Choose the layers of the largest drift (of equal ones, the lower), and the last."""
        if not self.awaits_drift:
            return self
        depth = len(kl_by_layer)
        # The last hidden states are chosen in any case, so their layer is not ranked.
        ranked = sorted(range(depth - 1), key=lambda i: (-kl_by_layer[i], i))
        after = [i + 1 for i in ranked[: self.drift_count - 1]]
        return replace(self, layers=(*sorted(after), depth))

    def needs(self, facts: ModelFacts) -> Needs:
        """A teacher, and both models' chosen hidden states."""
        numbers = self.chosen(facts)
        return Needs(
            teacher=True,
            hidden=numbers[-1] == facts.layers,
            hidden_layers=tuple(n for n in numbers if n < facts.layers),
        )

    def metric_root(self, facts: ModelFacts) -> str:
        """`longred_last` for the last hidden states alone, so that LongReD's two terms differ."""
        return "longred_last" if self.chosen(facts) == (facts.layers,) else "longred"

    def flops(self, tokens: int, facts: ModelFacts) -> float:
        """About 30 element-wise operations for each number of the chosen hidden states."""
        return 30.0 * tokens * facts.heads * facts.head_dim * len(self.chosen(facts))

    def needs_whole_blocks(self) -> None:
        """No setting: the loss is a mean over tokens."""

    def needs_whole_documents(self) -> None:
        """No setting: the models keep documents apart."""

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over the chosen hidden states of the mean over tokens.

        Metrics: `longred`, the loss, and `longred/by_layer`, the part of each chosen hidden state;
        for the last one alone, `longred_last`.
        """
        import torch

        assert teacher is not None
        numbers = self.chosen(facts)
        sides = [(student.after(n, facts), teacher.after(n, facts)) for n in numbers]
        parts = torch.stack([_distance(*pair) for pair in sides])
        loss = parts.sum()
        metrics = {self.metric_root(facts): loss.detach()}
        if numbers != (facts.layers,):
            metrics["longred/by_layer"] = parts.detach()
        return loss, metrics


def _distance(student_bth: Tensor, teacher_bth: Tensor) -> Tensor:
    """Mean of 1 - cosine. Only the inputs are kept; the backward pass computes it again."""

    import torch
    from torch.nn import functional
    from torch.utils.checkpoint import checkpoint

    def mean(student_bth: Tensor, teacher_bth: Tensor) -> Tensor:
        wide = torch.promote_types(student_bth.dtype, torch.float32)
        cosine_bt = functional.cosine_similarity(student_bth.to(wide), teacher_bth.to(wide), dim=-1)
        return 1 - cosine_bt.mean()

    value = checkpoint(mean, student_bth, teacher_bth.detach(), use_reentrant=False)
    assert isinstance(value, torch.Tensor)
    return value


OBJECTIVE = LongRed
