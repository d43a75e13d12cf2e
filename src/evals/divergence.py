"""Divergences of a student from the native model that read the same text, layer by layer.

Shapes: b rows, h heads, g key-value heads, t tokens, d head size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kernels.relation_kl import attention_kl, relation_kl
from src.evals.losses import SplitModel
from src.evals.suite import NOT_FINITE, EvaluationError
from src.models.shapes import facts_of
from src.objectives.base import QKV
from src.passes.capture import QKVCapture
from src.progress import meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RELATIONS = ("qq", "kk", "vv")
# Predictions are compared for this many positions at once.
_HEAD_CHUNK = 512


class Reading:
    """A model's pass over one text: q, k, v by layer, hidden states by layer, predictions."""

    def __init__(self, model: PreTrainedModel, ids_bt: torch.Tensor) -> None:
        self._split = SplitModel.of(model)
        capture = QKVCapture(range(model.config.num_hidden_layers))
        with capture.running():
            outputs = self._split.decoder(
                input_ids=ids_bt, use_cache=False, output_hidden_states=True
            )
        self.qkv: dict[int, QKV] = capture.take()
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

    Both models are loaded with capture, and are of one shape. Segments are token ids, int64
    [n, length]. `bins` are edges of bins of positions, `name` is for the progress meter. Raises
    EvaluationError if a figure is not finite.
    """
    device = next(native.parameters()).device
    layers, (n, length) = native.config.num_hidden_layers, segments_nt.shape
    facts = facts_of(student.config)
    # Sums over segments of means over heads. In float64 the order of addition does not show.
    zeros = partial(torch.zeros, dtype=torch.float64)
    kl = {kind: zeros(layers, length) for kind in (*RELATIONS, "attention")}
    cosine, logits = zeros(layers), zeros(length)
    with meter(f"drift, {name}", n) as progress:
        for segment in segments_nt:
            ids_bt = torch.from_numpy(segment[None]).to(device)
            teacher, pupil = Reading(native, ids_bt), Reading(student, ids_bt)
            for layer in range(layers):
                sides = (pupil.qkv.pop(layer), teacher.qkv.pop(layer))
                rows = _layer_rows(*sides, window=facts.windows[layer], scale=facts.scale)
                for kind, kl_t in rows.items():
                    kl[kind][layer] += kl_t
                similarity = torch.nn.functional.cosine_similarity(
                    pupil.hidden[layer].double(), teacher.hidden[layer].double(), dim=-1
                )
                cosine[layer] += similarity.mean().cpu()
            logits += _prediction_rows(pupil, teacher, length)
            progress.advance()
    if not all(t.isfinite().all() for t in (*kl.values(), cosine, logits)):
        raise EvaluationError(NOT_FINITE)
    attention = kl.pop("attention")
    return {
        "relation_kl": {r: (values.mean(1) / n).tolist() for r, values in kl.items()},
        "relation_kl_by_position": {
            "edges": list(bins),
            **{r: _binned(v.mean(0) / n, bins) for r, v in kl.items()},
        },
        "relation_kl_by_layer_and_position": {
            r: [_binned(row / n, bins) for row in values] for r, values in kl.items()
        },
        "attention_kl": (attention.mean(1) / n).tolist(),
        "attention_kl_by_position": _binned(attention.mean(0) / n, bins),
        "hidden_cosine": (cosine / n).tolist(),
        "logit_kl": (logits.mean() / n).item(),
        "logit_kl_by_position": _binned(logits / n, bins),
    }


def _layer_rows(
    student: QKV, teacher: QKV, *, window: int | None, scale: float | None
) -> dict[str, torch.Tensor]:
    """KL of each relation, and of attention, by row: mean over heads, float64 [t] on the CPU."""
    options: Any = {"scale": scale, "teacher_scale": scale, "window": window, "reduction": "none"}
    rows_bht = {
        name: relation_kl(mine, other, **options)
        for name, mine, other in zip(RELATIONS, student[:3], teacher[:3], strict=True)
    }
    rows_bht["attention"] = attention_kl(
        student.q_bhtd, student.k_bgtd, teacher.q_bhtd, teacher.k_bgtd, **options
    )
    return {name: kl_bht.double().mean((0, 1)).cpu() for name, kl_bht in rows_bht.items()}


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
