"""How far a student has drifted from the native model on short text: what distillation lowers.

Both models read the same text. The suite compares, layer by layer, the self-relations of queries,
keys and values (softmax(alpha X X^T), as in src/objectives/relation.py), the attention rows
(softmax(alpha Q K^T)), the hidden states after each layer, and the predictions. All divergences are
KL(native || student) in nats, means over heads and tokens. By position the first tokens have their
own bins, since attention gathers on them.

Shapes: b rows, h heads, g key-value heads, t tokens, d head size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from kernels.relation_kl import attention_kl, relation_kl
from src.evals.scoring import Count, SplitModel, cache_key, spread_segments
from src.evals.suite import (
    NOT_FINITE,
    Candidate,
    Evaluation,
    EvaluationError,
    Outcome,
    ResultTable,
    records_of,
)
from src.models.shapes import facts_of
from src.passes.capture import QKVCapture
from src.passes.layer_pass import LayerQKV
from src.progress import meter
from src.results import TRAINED, Curve, Dataset, DriftModel, DriftResults

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RELATIONS = ("qq", "kk", "vv")
# Predictions are compared for this many positions at once.
_HEAD_CHUNK = 512


@dataclass(frozen=True)
class DriftSuite:
    """The text that is compared.

    Attributes:
        length: tokens of a segment, at most the native window.
        segments: number of segments, evenly spaced over the held-out text.
        edges: first positions of the bins, ascending from 0; the last bin has no end. Position 0
            sees only itself, so its relations cannot differ.
    """

    length: Count = 2048
    segments: Count = 8
    edges: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (
        *(0, 1, 4, 16, 64, 256, 1024, 4096),
    )

    name: ClassVar[str] = "drift"
    needs_run: ClassVar[bool] = True
    record: ClassVar[type[DriftResults]] = DriftResults

    def __post_init__(self) -> None:
        if self.edges[0] != 0 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges={list(self.edges)}: give ascending positions that begin at 0")

    @property
    def bins(self) -> tuple[int, ...]:
        """Edges below the segment's length."""
        return tuple(edge for edge in self.edges if edge < self.length)

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Nothing to compare, or text that is too short."""
        try:
            self._pair(evaluation)
            self._segments(evaluation)
        except EvaluationError as error:
            return [str(error)]
        return []

    def run(self, evaluation: Evaluation) -> Outcome:
        """Compare every model with the native one; of several processes the first does all."""
        if not evaluation.is_main:
            return Outcome(None)
        native, others = self._pair(evaluation)
        segments_nt, dataset = self._segments(evaluation)
        with ExitStack() as held:
            # Loaded for the first model that is not cached, and kept for the others.
            teacher = cache(lambda: held.enter_context(evaluation.loaded(native, capture=True)))
            models, failures = records_of(
                others,
                lambda each: self._model(evaluation, native, teacher, each, segments_nt, dataset),
            )
        return Outcome(
            DriftResults(
                failures=failures,
                models=models,
                dataset=dataset,
                length=self.length,
                edges=self.bins,
            )
        )

    def _pair(self, evaluation: Evaluation) -> tuple[Candidate, tuple[Candidate, ...]]:
        natives = evaluation.of_role("native")
        others = evaluation.of_role("scaled", *TRAINED, "comparison")
        if not natives or not others:
            raise EvaluationError(
                "eval=drift compares a run's models with the native one: give run=RUN_DIR instead "
                "of a model's name"
            )
        native = natives[0]
        if self.length > native.window:
            raise EvaluationError(
                f"eval.drift.length={self.length} is longer than the native window of "
                f"{native.window}, for which the native model was trained; choose at most that"
            )
        return native, others

    def _segments(self, evaluation: Evaluation) -> tuple[np.ndarray, Dataset]:
        """Segments, int64 [n, length], and their key for the cache."""
        corpus = evaluation.corpus
        segments_nt = spread_segments(
            corpus.held_out_documents(), self.length, self.segments, needed_by="eval.drift.length"
        )
        dataset = Dataset(
            name=corpus.name,
            fingerprint=corpus.fingerprint(self.length),
            tokens=int(segments_nt.size),
        )
        return segments_nt, dataset

    def _model(
        self,
        evaluation: Evaluation,
        native: Candidate,
        teacher: Callable[[], PreTrainedModel],
        candidate: Candidate,
        segments_nt: np.ndarray,
        dataset: Dataset,
    ) -> DriftModel:
        key = cache_key(
            evaluation,
            candidate,
            self.name,
            text=dataset.fingerprint,
            settings=asdict(self),
            native=native.fingerprint,
        )
        figures = evaluation.cache.get(key)
        if figures is None:
            reference = teacher()
            with evaluation.loaded(candidate, capture=True) as student:
                figures = evaluate(reference, student, segments_nt, self.bins, name=candidate.name)
            evaluation.cache.put(key, figures)
        return DriftModel(**candidate.identity, **figures)

    @staticmethod
    def tables(record: DriftResults) -> Sequence[ResultTable]:
        """Means over layers, one row per model."""
        columns = ("model", "KL qq", "KL kk", "KL vv", "KL attention", "hidden cosine", "KL logits")
        assert record.dataset is not None
        return [
            ResultTable(
                name="drift",
                title=f"Drift from the native model on held-out {record.dataset.name} text, "
                f"{record.length} tokens at a time (means over layers, nats)",
                columns=columns,
                rows=tuple((model.name, *_means(model).values()) for model in record.models),
                formats=("", *(".4g" for _ in columns[1:])),
            )
        ]

    @staticmethod
    def summary(record: DriftResults) -> dict[str, float]:
        """Means over layers by model."""
        return {
            f"eval/{model.name}/drift/{name}": value
            for model in record.models
            for name, value in _means(model).items()
        }


def _means(model: DriftModel) -> dict[str, float]:
    """Figures of a model as means over layers."""
    curves: dict[str, Curve] = {r: model.relation_kl[r] for r in RELATIONS}
    curves |= {"attention_kl": model.attention_kl, "hidden_cosine": model.hidden_cosine}
    means = {name: sum(v or 0.0 for v in curve) / len(curve) for name, curve in curves.items()}
    return means | {"logit_kl": model.logit_kl or 0.0}


class Reading:
    """A model's pass over one text: q, k, v by layer, hidden states by layer, predictions."""

    def __init__(self, model: PreTrainedModel, ids_bt: torch.Tensor) -> None:
        self._split = SplitModel.of(model)
        capture = QKVCapture(range(model.config.num_hidden_layers))
        with capture.recording():
            outputs = self._split.decoder(
                input_ids=ids_bt, use_cache=False, output_hidden_states=True
            )
        self.qkv: dict[int, LayerQKV] = capture.take()
        # The first are the embeddings, which both models share.
        self.hidden: tuple[torch.Tensor, ...] = outputs.hidden_states[1:]
        self._last = outputs.last_hidden_state

    def log_probabilities(self, start: int, end: int) -> torch.Tensor:
        """Log-probabilities of the next tokens at start to end, float32 [b, end - start, v]."""
        return torch.log_softmax(self._split.logits(self._last[:, start:end]), dim=-1)


@torch.no_grad()
def evaluate(
    native: PreTrainedModel,
    student: PreTrainedModel,
    segments_nt: np.ndarray,
    bins: Sequence[int],
    *,
    name: str,
) -> dict[str, Any]:
    """A student's drift, as fields of `DriftModel`.

    Args:
        native: loaded with capture.
        student: loaded with capture, of the same shape.
        segments_nt: token ids, int64 [n, length].
        bins: edges of bins of positions.
        name: for the progress meter.

    Raises:
        EvaluationError: a figure is not finite.
    """
    device = next(native.parameters()).device
    layers = native.config.num_hidden_layers
    facts = facts_of(student.config)
    length = segments_nt.shape[1]
    # Sums over segments of means over heads, by layer and position. In float64 the order of
    # addition does not show.
    relation = {r: torch.zeros(layers, length, dtype=torch.float64) for r in RELATIONS}
    attention = torch.zeros(layers, length, dtype=torch.float64)
    cosine = torch.zeros(layers, dtype=torch.float64)
    logits = torch.zeros(length, dtype=torch.float64)
    with meter(f"drift, {name}", len(segments_nt)) as progress:
        for segment in segments_nt:
            ids_bt = torch.from_numpy(segment[None]).to(device)
            teacher, pupil = Reading(native, ids_bt), Reading(student, ids_bt)
            for layer in range(layers):
                sides = (pupil.qkv.pop(layer), teacher.qkv.pop(layer))
                window = facts.windows[layer]
                rows = _relation_rows(*sides, window=window, scale=facts.scale)
                for kind, kl_t in rows.items():
                    relation[kind][layer] += kl_t
                attention[layer] += _attention_rows(*sides, window=window, scale=facts.scale)
                similarity = torch.nn.functional.cosine_similarity(
                    pupil.hidden[layer].double(), teacher.hidden[layer].double(), dim=-1
                )
                cosine[layer] += similarity.mean().cpu()
            logits += _prediction_rows(pupil, teacher, length)
            progress.advance()
    if not all(t.isfinite().all() for t in (*relation.values(), attention, cosine, logits)):
        raise EvaluationError(NOT_FINITE)
    n = len(segments_nt)
    return _relation_figures(relation, n, bins) | {
        "attention_kl": (attention.mean(1) / n).tolist(),
        "attention_kl_by_position": _binned(attention.mean(0) / n, bins),
        "hidden_cosine": (cosine / n).tolist(),
        "logit_kl": (logits.mean() / n).item(),
        "logit_kl_by_position": _binned(logits / n, bins),
    }


def _relation_figures(
    sums: Mapping[str, torch.Tensor], n: int, bins: Sequence[int]
) -> dict[str, Any]:
    """Means by layer and position of sums over n segments, float64 [layers, t] by relation."""
    return {
        "relation_kl": {r: (values.mean(1) / n).tolist() for r, values in sums.items()},
        "relation_kl_by_position": {"edges": list(bins)}
        | {r: _binned(values.mean(0) / n, bins) for r, values in sums.items()},
        "relation_kl_by_layer_and_position": {
            r: [_binned(row / n, bins) for row in values] for r, values in sums.items()
        },
    }


def _relation_rows(
    student: LayerQKV, teacher: LayerQKV, *, window: int | None, scale: float | None
) -> dict[str, torch.Tensor]:
    """KL of each relation by row, mean over heads, float64 [t] on the CPU."""
    found: dict[str, torch.Tensor] = {}
    for name, own, other in zip(RELATIONS, student, teacher, strict=True):
        kl_bht = relation_kl(
            own, other, scale=scale, teacher_scale=scale, window=window, reduction="none"
        )
        found[name] = _mean_rows(kl_bht)
    return found


def _attention_rows(
    student: LayerQKV, teacher: LayerQKV, *, window: int | None, scale: float | None
) -> torch.Tensor:
    """KL of the attention's rows, mean over heads, float64 [t] on the CPU."""
    kl_bht = attention_kl(
        student.q_bhtd,
        student.k_bgtd,
        teacher.q_bhtd,
        teacher.k_bgtd,
        scale=scale,
        teacher_scale=scale,
        window=window,
        reduction="none",
    )
    return _mean_rows(kl_bht)


def _mean_rows(kl_bht: torch.Tensor) -> torch.Tensor:
    return kl_bht.double().mean((0, 1)).cpu()


def _prediction_rows(student: Reading, teacher: Reading, length: int) -> torch.Tensor:
    """KL of the predictions by position, float64 [t] on the CPU."""
    parts = []
    for start in range(0, length, _HEAD_CHUNK):
        end = min(start + _HEAD_CHUNK, length)
        own_btv = student.log_probabilities(start, end)
        other_btv = teacher.log_probabilities(start, end)
        kl_bt = (other_btv.exp() * (other_btv - own_btv)).sum(-1)
        parts.append(kl_bt.double().mean(0).cpu())
    return torch.cat(parts)


def _binned(values_t: torch.Tensor, edges: Sequence[int]) -> list[float]:
    ends = [*edges[1:], len(values_t)]
    return [values_t[a:b].mean().item() for a, b in zip(edges, ends, strict=True)]


SUITE = DriftSuite
