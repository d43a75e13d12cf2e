"""Attention-relation distillation: the first stage of LinearARD (arXiv 2604.00004).

At each layer the student's and the teacher's queries, keys and values give self-relations
softmax(alpha X X^T), causal; the loss is KL(teacher || student) by row, averaged over rows, heads
and layers and summed over the relations with their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from kernels.relation_kl import relation_kl_set
from src.facts import ModelFacts
from src.objectives.base import QKV, Batch, Needs, Outputs

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class RelationWeights:
    """Weight of each self-relation: queries (qq), keys (kk), values (vv)."""

    qq: Weight = 1.0
    kk: Weight = 1.0
    vv: Weight = 1.0

    def __post_init__(self) -> None:
        if self.qq + self.kk + self.vv == 0:
            raise ValueError("weights qq, kk and vv are all 0: give at least one a positive weight")


class LayerRelations(NamedTuple):
    """A layer's weighted loss, a scalar, and the unweighted one of each relation, detached [r]."""

    loss: Tensor
    each: Tensor


@dataclass(frozen=True)
class Relation:
    """Relation KL on chosen layers.

    `normalization`: `own_heads` divides each relation by its own number of heads; `reference`
    divides all three by the number of query heads, as the public code does, which under-weights
    keys and values of grouped-query models.
    """

    type: Literal["relation"]
    weights: RelationWeights = RelationWeights()
    layers: Literal["all", "last"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    normalization: Literal["own_heads", "reference"] = "own_heads"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    backend: Literal["auto", "triton", "chunked", "reference"] = "auto"

    bounded_by_native_window: ClassVar[bool] = True

    def chosen_layers(self, facts: ModelFacts) -> tuple[int, ...]:
        """Layer indices, ascending.

        Raises:
            ValueError: an empty list, a repeated layer, or one the model does not have.
        """
        if self.layers == "all":
            return tuple(range(facts.layers))
        if self.layers == "last":
            return (facts.layers - 1,)
        chosen = tuple(sorted(self.layers))
        if not chosen or len(set(chosen)) < len(chosen) or chosen[-1] >= facts.layers:
            raise ValueError(
                f"layers={list(self.layers)}: give 'all', 'last' or different indices from 0 to "
                f"{facts.layers - 1}"
            )
        return chosen

    def needs(self, facts: ModelFacts) -> Needs:
        """A teacher, and q, k, v of the chosen layers."""
        return Needs(teacher=True, qkv_layers=self.chosen_layers(facts))

    def flops(self, tokens: int, facts: ModelFacts) -> float:
        """Two matrix products a causal tile forward and four backward, for each weighted relation.

        This is the least an exact kernel can do (kernels/relation_kl/README.md).
        """
        heads = {"qq": facts.heads, "kk": facts.kv_heads, "vv": facts.kv_heads}
        weighted = sum(heads[name] for name in self._relations())
        layers = len(self.chosen_layers(facts))
        return 6.0 * weighted * facts.head_dim * tokens**2 * layers

    def layer(
        self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts
    ) -> LayerRelations:
        """The layer's loss, and its relations' own."""
        assert teacher is not None
        names = self._relations()
        loss, each = relation_kl_set(
            _sides(student, names),
            _sides(teacher, names),
            self._layer_weights(student, names),
            scale=facts.scale,
            teacher_scale=facts.scale,
            window=facts.windows[layer],
            temperature=self.temperature,
            backend=self.backend,
        )
        return LayerRelations(loss, each)

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over layers of the weighted sum of relations.

        Metrics: `relation/qq`, `relation/kk`, `relation/vv` unweighted, mean over layers (each
        for a weight above 0), and `relation/by_layer`, the weighted loss of each chosen layer.
        """
        del batch, teacher
        layers: list[LayerRelations] = [student.layers[i] for i in self.chosen_layers(facts)]
        stacked = torch.stack([layer.loss for layer in layers])
        mean_parts = torch.stack([layer.each for layer in layers]).mean(0)
        metrics = {f"relation/{n}": mean_parts[i] for i, n in enumerate(self._relations())}
        metrics["relation/by_layer"] = stacked.detach()
        return stacked.mean(), metrics

    def _relations(self) -> list[str]:
        return [name for name in ("qq", "kk", "vv") if getattr(self.weights, name) > 0]

    def _layer_weights(self, qkv: QKV, names: list[str]) -> list[float]:
        weights = [float(getattr(self.weights, n)) for n in names]
        if self.normalization == "own_heads":
            return weights
        # The reference divides every relation's sum by rows times *query* heads.
        query_heads = qkv.q_bhtd.shape[1]
        sides = _sides(qkv, names)
        return [w * x.shape[1] / query_heads for w, x in zip(weights, sides, strict=True)]


def _sides(qkv: QKV, names: list[str]) -> list[Tensor]:
    tensors = {"qq": qkv.q_bhtd, "kk": qkv.k_bgtd, "vv": qkv.v_bgtd}
    return [tensors[n] for n in names]


OBJECTIVE = Relation
