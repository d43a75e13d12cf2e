"""Attention-relation distillation: the first stage of LinearARD (arXiv 2604.00004).

At each layer the student's and the teacher's queries, keys and values give self-relations
softmax(alpha X X^T), causal; the loss is KL(teacher || student) by row, averaged over rows, heads
and layers and summed over the relations with their weights. Self-relations alone do not determine
the attention itself: `qk` adds the same KL of the attention rows softmax(alpha Q K^T), and `av` the
mean-square error of what they give, A V, over the teacher's mean square.

On blocks longer than the teacher's window, `teacher_chunk` lets the teacher read overlapping chunks
(src/passes/chunks.py). Relations then reach back half a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, WrapValidator

from src.models.facts import ModelFacts
from src.objectives.base import QKV, Batch, Needs, Objective, Outputs, list_or_word, seen_tokens

if TYPE_CHECKING:
    from torch import Tensor

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class RelationWeights:
    """Weight of each term.

    Self-relations of queries (qq), keys (kk) and values (vv); attention rows (qk); attention's
    output (av).
    """

    qq: Weight = 1.0
    kk: Weight = 1.0
    vv: Weight = 1.0
    qk: Weight = 0.0
    av: Weight = 0.0

    def __post_init__(self) -> None:
        if self.qq + self.kk + self.vv + self.qk + self.av == 0:
            raise ValueError(
                "weights qq, kk, vv, qk and av are all 0: give at least one a positive weight"
            )


class LayerRelations(NamedTuple):
    """A layer's weighted loss, a scalar, and the unweighted one of each term, detached [r]."""

    loss: Tensor
    each: Tensor


@dataclass(frozen=True)
class Relation(Objective):
    """Relation KL on chosen layers.

    `normalization`: `own_heads` divides each relation by its own number of heads; `reference`
    divides all three by the number of query heads, as the public code does, which under-weights
    keys and values of grouped-query models.

    `relation_heads` regroups the heads of the self-relations as MiniLMv2 does (2012.15828): those
    of queries, keys and values are each concatenated and split into that many, so that teacher and
    student may differ in heads and width; scores are divided by the root of their width. Attention
    rows and outputs keep their heads, and `reference` has nothing to divide by.

    Attributes:
        layers: `all`, `last`, a list of indices, or `drift`: those whose attention the scaling
            moves most, measured before training.
        drift_share: share of the layers that `drift` chooses, at least one layer.
        teacher_chunk: tokens, an even number. The teacher reads longer blocks in overlapping chunks
            of this many, and a row of a relation sees half as many tokens. Null: the teacher reads
            blocks whole.
        student_factor: factor on the student's scores of queries and keys. YaRN multiplies these by
            the square of its attention factor; the inverse of that leaves this sharpening alone.
    """

    type: Literal["relation"]
    weights: RelationWeights = RelationWeights()
    layers: Annotated[
        Literal["all", "last", "drift"] | tuple[Annotated[int, Field(ge=0)], ...],
        WrapValidator(list_or_word),
    ] = "all"
    normalization: Literal["own_heads", "reference"] = "own_heads"
    relation_heads: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    backend: Literal["auto", "triton", "chunked", "reference"] = "auto"
    drift_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    teacher_chunk: Annotated[int, Field(gt=0, multiple_of=2)] | None = None
    student_factor: Annotated[float, Field(gt=0)] = 1.0

    def __post_init__(self) -> None:
        if self.teacher_chunk is not None and self.weights.av:
            raise ValueError(
                f"teacher_chunk={self.teacher_chunk} and weights.av={self.weights.av} exclude each "
                "other: A V of a window would need a mask of all tokens by all tokens; leave one "
                "of them out"
            )
        if self.normalization == "reference" and self.relation_heads is not None:
            raise ValueError(
                f"normalization=reference and relation_heads={self.relation_heads} exclude each "
                "other, since queries, keys and values then have as many heads: leave one of them "
                "out"
            )

    def chosen_layers(self, facts: ModelFacts) -> tuple[int, ...]:
        """Layer indices, ascending.

        Raises:
            ValueError: an empty list, a repeated layer, or one the model does not have.
        """
        if self.layers == "all":
            return tuple(range(facts.layers))
        if self.layers == "last":
            return (facts.layers - 1,)
        if self.layers == "drift":
            # The drift is not measured yet. The plan only needs the number.
            return tuple(range(facts.layers - self._drifting(facts.layers), facts.layers))
        chosen = tuple(sorted(self.layers))
        if not chosen or len(set(chosen)) < len(chosen) or chosen[-1] >= facts.layers:
            raise ValueError(
                f"layers={list(self.layers)}: give 'all', 'last', 'drift' or different indices "
                f"from 0 to {facts.layers - 1}"
            )
        return chosen

    def needs(self, facts: ModelFacts) -> Needs:
        """A teacher, and q, k, v of the chosen layers.

        Raises:
            ValueError: as `chosen_layers`; or relation heads that do not divide the heads' width.
        """
        for heads in (facts.heads, facts.kv_heads):
            width = heads * facts.head_dim
            if self.relation_heads is not None and width % self.relation_heads:
                raise ValueError(
                    f"relation_heads={self.relation_heads}: it must divide {width}, the width of "
                    f"{heads} heads of {facts.head_dim}"
                )
        return Needs(
            teacher=True, qkv_layers=self.chosen_layers(facts), teacher_chunk=self.teacher_chunk
        )

    def with_drift(self, kl_by_layer: Sequence[float]) -> Relation:
        """Choose the layers of the largest drift; of equal ones, the lower."""
        if not self.awaits_drift:
            return self
        ranked = sorted(range(len(kl_by_layer)), key=lambda i: (-kl_by_layer[i], i))
        return replace(self, layers=tuple(sorted(ranked[: self._drifting(len(ranked))])))

    def check(self, length: int, *, cuda: bool) -> None:
        """Refuse the Triton backend without a GPU.

        Raises:
            ValueError: the settings ask for it.
        """
        if self.backend != "triton" or cuda:
            return
        from kernels.relation_kl import interpreted

        if not interpreted():
            raise ValueError(
                "backend=triton needs a CUDA device (engine.device): use auto, chunked or reference"
            )

    def flops(self, tokens: int, facts: ModelFacts) -> float:
        """Two matrix products a causal tile forward and four backward, for each weighted relation.

        This is the least an exact kernel can do (kernels/relation_kl/README.md). The attention's
        output takes two of each model, and five backward.
        """
        heads = {"qq": facts.heads, "kk": facts.kv_heads, "vv": facts.kv_heads, "qk": facts.heads}
        units = 6.0 * sum(heads[n] for n in self._terms() if n != "av")
        if self.weights.av:
            units += 9.0 * facts.heads
        # Twice the pairs of a row and a token that it sees.
        window = self._window(None)
        reach = tokens if window is None else min(tokens, window)
        pairs = 2.0 * tokens * reach - reach**2
        return units * facts.head_dim * pairs * len(self.chosen_layers(facts))

    def needs_whole_blocks(self) -> str | None:
        """Relation heads, made of all heads; the error of A V, a ratio of two means; or chunks."""
        if self.teacher_chunk is not None:
            return f"teacher_chunk={self.teacher_chunk}"
        if self.relation_heads is not None:
            return f"relation_heads={self.relation_heads}"
        return f"weights.av={self.weights.av}" if self.weights.av else None

    def needs_whole_documents(self) -> str | None:
        """Chunks of the teacher, which cross borders; the error of A V, a ratio of two means."""
        if self.teacher_chunk is not None:
            return f"teacher_chunk={self.teacher_chunk}"
        return f"weights.av={self.weights.av}" if self.weights.av else None

    def layer(
        self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts
    ) -> LayerRelations:
        """The layer's loss, and the loss of each weighted term in the order qq, kk, vv, qk, av."""
        import torch

        from kernels.relation_kl import attention_kl, relation_kl_set

        assert teacher is not None
        window, scale = self._window(facts.windows[layer]), facts.scale
        student = self._compared(student)
        segments = student.segment_ids_bt
        common: dict[str, Any] = {"window": window, "segment_ids": segments}
        common |= {"temperature": self.temperature, "backend": self.backend}
        losses: list[Tensor] = []
        each: list[Tensor] = []
        if names := [n for n in self._terms() if n not in ("qk", "av")]:
            # The model's scale is for its own heads. Relation heads use that of their width.
            head_scale = scale if self.relation_heads is None else None
            loss, by_relation = relation_kl_set(
                self._sides(student, names),
                self._sides(teacher, names),
                self._self_weights(names, facts),
                scale=head_scale,
                teacher_scale=head_scale,
                **common,
            )
            losses.append(loss)
            each.append(by_relation)
        if self.weights.qk:
            rows = attention_kl(
                student.q_bhtd,
                student.k_bgtd,
                teacher.q_bhtd,
                teacher.k_bgtd,
                scale=scale,
                teacher_scale=scale,
                **common,
            )
            losses.append(self.weights.qk * rows)
            each.append(rows.detach()[None])
        if self.weights.av:
            error = _output_error(student, teacher, window, scale, segments)
            losses.append(self.weights.av * error)
            each.append(error.detach()[None])
        return LayerRelations(sum(losses[1:], start=losses[0]), torch.cat(each))

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over layers of the weighted sum of relations.

        Metrics: `relation/qq`, `relation/kk`, `relation/vv`, `relation/qk` and `relation/av`
        unweighted, mean over layers (each for a weight above 0), and `relation/by_layer`, the
        weighted loss of each chosen layer.
        """
        import torch

        layers: list[LayerRelations] = [student.layers[i] for i in self.chosen_layers(facts)]
        stacked = torch.stack([layer.loss for layer in layers])
        mean_parts = torch.stack([layer.each for layer in layers]).mean(0)
        metrics = {f"relation/{n}": mean_parts[i] for i, n in enumerate(self._terms())}
        metrics["relation/by_layer"] = stacked.detach()
        return stacked.mean(), metrics

    def _drifting(self, layers: int) -> int:
        return max(1, round(self.drift_share * layers))

    def _window(self, own: int | None) -> int | None:
        """How many tokens a row sees: the layer's own window, or half a chunk if that is less."""
        if self.teacher_chunk is None:
            return own
        return min(self.teacher_chunk // 2, own or self.teacher_chunk)

    def _compared(self, student: QKV) -> QKV:
        """The student's attention inputs, whose scores have `student_factor`."""
        if self.student_factor == 1.0:
            return student
        root = math.sqrt(self.student_factor)
        return student._replace(q_bhtd=root * student.q_bhtd, k_bgtd=root * student.k_bgtd)

    def _terms(self) -> list[str]:
        return [n for n in ("qq", "kk", "vv", "qk", "av") if getattr(self.weights, n) > 0]

    def _self_weights(self, names: list[str], facts: ModelFacts) -> list[float]:
        weights = [float(getattr(self.weights, n)) for n in names]
        if self.normalization == "own_heads":
            return weights
        # The reference divides every relation's sum by rows times *query* heads: the model's, of
        # which a rank may have a share.
        heads = {"qq": facts.heads, "kk": facts.kv_heads, "vv": facts.kv_heads}
        return [w * heads[n] / facts.heads for w, n in zip(weights, names, strict=True)]

    def _sides(self, qkv: QKV, names: list[str]) -> list[Tensor]:
        tensors = {"qq": qkv.q_bhtd, "kk": qkv.k_bgtd, "vv": qkv.v_bgtd}
        chosen = [tensors[n] for n in names]
        if self.relation_heads is None:
            return chosen
        from kernels.relation_kl import split_relation_heads

        return [split_relation_heads(x, self.relation_heads) for x in chosen]


def _output_error(
    student: QKV,
    teacher: QKV,
    window: int | None,
    scale: float | None,
    segment_ids_bt: Tensor | None,
) -> Tensor:
    """Mean square of A V's difference over the mean square of the teacher's A V, a scalar."""
    import torch

    with torch.no_grad():
        aim_bhtd = _attention_output(teacher, window, scale, segment_ids_bt)
    made_bhtd = _attention_output(student, window, scale, segment_ids_bt)
    wide = torch.promote_types(made_bhtd.dtype, torch.float32)
    difference_bhtd = made_bhtd.to(wide) - aim_bhtd.to(wide)
    return difference_bhtd.square().mean() / aim_bhtd.to(wide).square().mean()


def _attention_output(
    qkv: QKV, window: int | None, scale: float | None, segment_ids_bt: Tensor | None
) -> Tensor:
    """A V of causal attention, [b, h, t, d]."""
    from torch.nn import functional

    q_bhtd, k_bgtd, v_bgtd = qkv.q_bhtd, qkv.k_bgtd, qkv.v_bgtd
    tokens = q_bhtd.shape[2]
    window = None if window is None or window >= tokens else window
    if window is None and segment_ids_bt is None:
        return functional.scaled_dot_product_attention(
            q_bhtd, k_bgtd, v_bgtd, is_causal=True, scale=scale, enable_gqa=True
        )
    seen = seen_tokens(tokens, window, q_bhtd.device, segment_ids_bt)
    return functional.scaled_dot_product_attention(
        q_bhtd, k_bgtd, v_bgtd, attn_mask=seen, scale=scale, enable_gqa=True
    )


OBJECTIVE = Relation
