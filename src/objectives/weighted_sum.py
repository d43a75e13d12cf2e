"""Several objectives on one stream: their weighted sum, from one pass of teacher and student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from src.models.facts import ModelFacts
from src.objectives.base import QKV, Batch, DriftChosen, Needs, Objective, Outputs


@dataclass
class WeightedSum:
    """Sum of objectives times their weights.

    Attributes:
        parts: (name, objective, weight), at least one; names differ.
        bounded_by_native_window: whether any part is.
    """

    parts: tuple[tuple[str, Objective, float], ...]
    bounded_by_native_window: bool = field(init=False)

    def __post_init__(self) -> None:
        self.bounded_by_native_window = any(o.bounded_by_native_window for _, o, _ in self.parts)

    def needs(self, facts: ModelFacts) -> Needs:
        """What any part needs."""
        wanted = [o.needs(facts) for _, o, _ in self.parts]
        return Needs(
            teacher=any(n.teacher for n in wanted),
            qkv_layers=tuple(sorted({i for n in wanted for i in n.qkv_layers})),
            hidden=any(n.hidden for n in wanted),
            head=any(n.head for n in wanted),
            hidden_layers=tuple(sorted({i for n in wanted for i in n.hidden_layers})),
            teacher_head=any(n.teacher_head for n in wanted),
        )

    def flops(self, tokens: int, facts: ModelFacts) -> float:
        """All parts' work."""
        return sum(o.flops(tokens, facts) for _, o, _ in self.parts)

    def layer(
        self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts
    ) -> dict[str, Any]:
        """What each part that wants the layer computes of it, by the part's name."""
        return {
            name: objective.layer(layer, teacher, student, facts)
            for name, objective, _ in self.parts
            if layer in objective.needs(facts).qkv_layers
        }

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum; metrics are the parts' own, unweighted.

        What two parts of one type would report under one name, each reports as `PART/NAME`.
        """
        metrics: dict[str, dict[str, Tensor]] = {}
        losses: list[Tensor] = []
        for name, objective, weight in self.parts:
            layers = {i: given[name] for i, given in student.layers.items() if name in given}
            own = replace(student, layers=layers)
            value, reported = objective.loss(batch, teacher, own, facts)
            losses.append(weight * value)
            metrics[name] = reported
        return sum(losses[1:], start=losses[0]), _told_apart(metrics)

    @property
    def awaits_drift(self) -> bool:
        """Whether any part does."""
        return any(isinstance(o, DriftChosen) and o.awaits_drift for _, o, _ in self.parts)

    def with_drift(self, kl_by_layer: Sequence[float]) -> WeightedSum:
        """The sum with its parts' layers chosen."""
        return WeightedSum(
            tuple(
                (name, o.with_drift(kl_by_layer) if isinstance(o, DriftChosen) else o, weight)
                for name, o, weight in self.parts
            )
        )


def _told_apart(metrics: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All parts' figures; one whose name several parts use is named after its part as well."""
    times = Counter(key for reported in metrics.values() for key in reported)
    return {
        key if times[key] == 1 else f"{part}/{key}": value
        for part, reported in metrics.items()
        for key, value in reported.items()
    }
