"""Several objectives on one stream: their weighted sum, from one pass of teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from src.models.facts import ModelFacts
from src.objectives.base import QKV, Batch, Needs, Objective, Outputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class WeightedSum(Objective):
    """Sum of objectives times their weights.

    Attributes:
        parts: (name, objective, weight), at least one; names differ.
    """

    parts: tuple[tuple[str, Objective, float], ...]

    def needs(self, facts: ModelFacts) -> Needs:
        """What any part needs.

        Raises:
            ValueError: parts for which the teacher would have to read a block in different ways.
        """
        needs = [part.needs(facts) for _, part, _ in self.parts]
        reads = {n.teacher_chunk for n in needs if n.teacher}
        if len(reads) > 1:
            names = ", ".join(name for name, _, _ in self.parts)
            raise ValueError(
                f"objective={names}: the teacher would read blocks both in chunks of "
                f"{max(filter(None, reads))} tokens and otherwise; give these objectives the same "
                "chunks, or streams of their own"
            )
        return Needs(
            teacher=any(n.teacher for n in needs),
            qkv_layers=tuple(sorted({i for n in needs for i in n.qkv_layers})),
            hidden=any(n.hidden for n in needs),
            head=any(n.head for n in needs),
            hidden_layers=tuple(sorted({i for n in needs for i in n.hidden_layers})),
            teacher_head=any(n.teacher_head for n in needs),
            teacher_chunk=max(filter(None, reads), default=None),
        )

    def flops(self, tokens: int, facts: ModelFacts) -> float:
        return sum(part.flops(tokens, facts) for _, part, _ in self.parts)

    def layer(
        self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts
    ) -> dict[str, Any]:
        """The result of each part that needs this layer, by the part's name."""
        return {
            name: part.layer(layer, teacher, student, facts)
            for name, part, _ in self.parts
            if layer in part.needs(facts).qkv_layers
        }

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the unweighted metrics of each part as `PART/NAME`."""
        metrics: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for name, part, weight in self.parts:
            layers = {i: results[name] for i, results in student.layers.items() if name in results}
            value, reported = part.loss(batch, teacher, replace(student, layers=layers), facts)
            losses.append(weight * value)
            metrics |= {f"{name}/{key}": metric for key, metric in reported.items()}
        return sum(losses[1:], start=losses[0]), metrics

    @property
    def awaits_drift(self) -> bool:
        return any(part.awaits_drift for _, part, _ in self.parts)

    def with_drift(self, kl_by_layer: Sequence[float]) -> WeightedSum:
        return WeightedSum(
            tuple((name, part.with_drift(kl_by_layer), weight) for name, part, weight in self.parts)
        )
