"""Perplexity of held-out text by window length.

Every window length scores the same text: segments as long as the largest window, spread over the
held-out documents, each cut into windows. A model sees a window and nothing before it; the first
token of a window has no prediction. Perplexity is exp of the mean negative log-likelihood a
predicted token, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from src.evals.suite import NOT_FINITE, EvaluationError
from src.progress import meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits are made for this many positions at once.
_HEAD_CHUNK = 2048
# A smaller rise of perplexity, relative to the native model's, counts as none.
MINIMAL_GAP = 0.01


@dataclass(frozen=True)
class PerplexityConfig:
    """Window lengths, in tokens, and how much text is scored.

    Attributes:
        windows: lengths; the largest decides the segments.
        tokens: text scored at each window length, rounded down to whole segments, at least one.
        headline: the window whose scores are quoted.
        batch_tokens: tokens of one forward pass, at most (one window at least).
    """

    windows: Annotated[tuple[Annotated[int, Field(gt=1)], ...], Field(min_length=1)]
    tokens: Annotated[int, Field(gt=0)]
    headline: Annotated[int, Field(gt=1)]
    batch_tokens: Annotated[int, Field(gt=0)] = 4096

    def __post_init__(self) -> None:
        largest = max(self.windows)
        odd = [w for w in self.windows if largest % w]
        if odd:
            raise ValueError(
                f"windows={list(self.windows)}: {odd} do not divide the largest, {largest}, so "
                "they would score other text than it does"
            )
        if self.headline not in self.windows:
            raise ValueError(f"headline={self.headline} is not among windows={list(self.windows)}")


def segments(documents: Sequence[tuple[str, np.ndarray]], config: PerplexityConfig) -> np.ndarray:
    """Segments of the largest window from the held-out documents, int64 [segments, window].

    They are taken evenly spaced from all that there are.

    Raises:
        ValueError: no held-out document is as long as the largest window.
    """
    length = max(config.windows)
    found = spread_segments(documents, length, max(1, config.tokens // length))
    if not len(found):
        raise ValueError(
            f"eval.perplexity.windows has {length}, but the longest held-out document has "
            f"{longest(documents)} tokens: give shorter windows or hold out longer documents "
            "(data.held_out)"
        )
    return found


def spread_segments(
    documents: Sequence[tuple[str, np.ndarray]], length: int, number: int
) -> np.ndarray:
    """At most `number` segments, int64 [n, length], evenly spaced over all that there are.

    None, [0, length], where no document is that long.
    """
    found = [
        tokens[start : start + length]
        for _, tokens in documents
        for start in range(0, len(tokens) - length + 1, length)
    ]
    if not found:
        return np.empty((0, length), dtype=np.int64)
    chosen = np.linspace(0, len(found) - 1, min(number, len(found))).round().astype(int)
    return np.stack([found[i] for i in chosen]).astype(np.int64)


def longest(documents: Sequence[tuple[str, np.ndarray]]) -> int:
    """Tokens of the longest document, 0 without any."""
    return max((len(tokens) for _, tokens in documents), default=0)


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, ids_bt: Tensor, last: int, *, reduction: str
) -> Iterator[Tensor]:
    """Negative log-likelihood, in nats, of the last tokens of each row, a chunk of them at a time.

    A row's first token has no prediction, so `last` is at most t - 1.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    assert head is not None, "a causal language model has an output head"
    hidden_bth = decoder(input_ids=ids_bt, use_cache=False).last_hidden_state
    hidden_nh = hidden_bth[:, -last - 1 : -1].flatten(0, 1)
    targets_n = ids_bt[:, -last:].flatten()
    for at in range(0, len(targets_n), _HEAD_CHUNK):
        logits = head(hidden_nh[at : at + _HEAD_CHUNK]).float()
        yield torch.nn.functional.cross_entropy(
            logits, targets_n[at : at + _HEAD_CHUNK], reduction=reduction
        )


def negative_log_likelihood(
    model: PreTrainedModel, windows_nt: np.ndarray, *, batch_tokens: int, name: str
) -> float:
    """Mean negative log-likelihood, in nats a predicted token, over windows int64 [n, t].

    Raises:
        EvaluationError: it is not finite.
    """
    device = next(model.parameters()).device
    n, t = windows_nt.shape
    rows = max(1, batch_tokens // t)
    total = 0.0
    with meter(name, n) as progress:
        for start in range(0, n, rows):
            ids_bt = torch.from_numpy(windows_nt[start : start + rows]).to(device)
            for part in token_losses(model, ids_bt, t - 1, reduction="sum"):
                total += part.item()
            progress.advance(len(ids_bt))
    if not math.isfinite(total):
        raise EvaluationError(NOT_FINITE)
    return total / (n * (t - 1))


def evaluate_model(
    model: PreTrainedModel, segments_nt: np.ndarray, config: PerplexityConfig, *, name: str
) -> dict[str, Any]:
    """A model's figures at every window: `nll`, `perplexity` and scored `tokens`, by window.

    Raises:
        EvaluationError: a figure is not finite.
    """
    model.eval()
    nll: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for window in config.windows:
        windows_nt = segments_nt.reshape(-1, window)
        label = f"perplexity, {name}, window {window}"
        nll[str(window)] = negative_log_likelihood(
            model, windows_nt, batch_tokens=config.batch_tokens, name=label
        )
        tokens[str(window)] = windows_nt.shape[0] * (window - 1)
    # Beyond exp(700) a float64 overflows; a model that far gone is reported at that bound.
    perplexity = {window: math.exp(min(value, 700.0)) for window, value in nll.items()}
    return {"name": name, "perplexity": perplexity, "nll": nll, "tokens": tokens}


def scores(
    native: Mapping[str, float], scaled: Mapping[str, float], student: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """Restoration by window, from perplexities.

    `gap_closed` = (student - scaled) / (native - scaled), on perplexity; `gap_closed_nll`, the same
    on its logarithm; `recovery` = 100 * native / student (perplexity is better when lower). A gap
    is None where scaling has not made the model worse by at least MINIMAL_GAP: there is then
    nothing to close but noise.
    """
    result: dict[str, dict[str, float | None]] = {}
    for window, native_value in native.items():
        scaled_value, value = scaled[window], student[window]
        gap = gap_nll = None
        if scaled_value > native_value * (1 + MINIMAL_GAP):
            gap = (value - scaled_value) / (native_value - scaled_value)
            gap_nll = math.log(value / scaled_value) / math.log(native_value / scaled_value)
        result[window] = {
            "gap_closed": gap,
            "gap_closed_nll": gap_nll,
            "recovery": 100 * native_value / value,
        }
    return result
