"""Perplexity of held-out text by position, in a sliding window, and of the last tokens.

All three say how much a model makes of a longer context, on the same text:

- *by position*: negative log-likelihood of the tokens at positions 1, 2, ..., in bins;
- *last-k*: the same last k tokens of each segment, after contexts of different lengths;
- *sliding*: all tokens of each segment's last `sliding` part, in windows that advance by k, so that
  each is seen after at least window - k others.

Shapes: n segments, t tokens, k scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field

from src.evals.perplexity import longest, spread_segments, token_losses
from src.evals.suite import NOT_FINITE, EvaluationError
from src.progress import meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class PositionsConfig:
    """How text is scored.

    Attributes:
        segments: pieces of held-out text, each as long as the longest length.
        last: k, tokens that are scored after contexts of different lengths.
        sliding: tokens at the end of a segment that the sliding windows score, a multiple of k.
        edges: where bins of positions begin, ascending from 1; the last bin has no end.
    """

    segments: Count = 16
    last: Count = 256
    sliding: Count = 1024
    edges: Annotated[tuple[Count, ...], Field(min_length=1)] = (
        *(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
    )

    def __post_init__(self) -> None:
        if self.sliding % self.last:
            raise ValueError(f"sliding={self.sliding} is not a multiple of last={self.last}")
        if self.edges[0] != 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges={list(self.edges)}: give ascending positions that begin at 1")

    def needed(self, lengths: Sequence[int]) -> int:
        """Tokens that a segment must have: the longest window, for its earliest scored token."""
        return max(lengths) + self.sliding - self.last


def segments_of(
    documents: Sequence[tuple[str, np.ndarray]], length: int, number: int
) -> np.ndarray:
    """Segments int64 [n, length], evenly spaced over all that the documents hold.

    Raises:
        ValueError: no document is that long.
    """
    found = spread_segments(documents, length, number)
    if not len(found):
        raise ValueError(
            f"perplexity by position needs {length} tokens of running text, but the longest "
            f"held-out document has {longest(documents)}: choose shorter lengths, or hold out "
            "longer documents (data.held_out)"
        )
    return found


def token_nll(model: PreTrainedModel, ids_bt: np.ndarray, last: int) -> np.ndarray:
    """Negative log-likelihood, in nats, of each of the last tokens of each row, float64 [b, last].

    A row's first token has no prediction, so `last` is at most t - 1.

    Raises:
        EvaluationError: one is not finite.
    """
    assert 0 < last < ids_bt.shape[1]
    device = next(model.parameters()).device
    ids = torch.from_numpy(ids_bt).to(device)
    parts = list(token_losses(model, ids, last, reduction="none"))
    nll = torch.cat(parts).double().cpu().numpy().reshape(len(ids_bt), last)
    if not np.isfinite(nll).all():
        raise EvaluationError(NOT_FINITE)
    return nll


def evaluate(
    model: PreTrainedModel,
    segments_nt: np.ndarray,
    lengths: Sequence[int],
    config: PositionsConfig,
    *,
    batch_tokens: int,
    name: str,
) -> dict[str, Any]:
    """A model's figures at those lengths.

    `by_position` (bins up to the longest length), `last_k` and `sliding` by length; each with `nll`
    in nats a token, `perplexity`, and the scored `tokens`.

    Raises:
        EvaluationError: a figure is not finite.
    """
    steps = config.sliding // config.last
    total = len(segments_nt) * (1 + steps * len(lengths))
    last_k, sliding = {}, {}
    with meter(f"perplexity by position, {name}", total) as progress:

        def scored(windows_nt: np.ndarray, last: int) -> np.ndarray:
            rows = max(1, batch_tokens // windows_nt.shape[1])
            parts = []
            for start in range(0, len(windows_nt), rows):
                parts.append(token_nll(model, windows_nt[start : start + rows], last))
                progress.advance(len(parts[-1]))
            return np.concatenate(parts)

        by_position = scored(segments_nt[:, : max(lengths)], max(lengths) - 1)
        for length in lengths:
            ends = [segments_nt.shape[1] - i * config.last for i in range(steps)]
            windows = [segments_nt[:, end - length : end] for end in ends]
            scores = [scored(window, config.last) for window in windows]
            last_k[str(length)] = _figures(scores[0]) | {"k": config.last}
            sliding[str(length)] = _figures(np.stack(scores)) | {"stride": config.last}
    return {
        "by_position": _binned(by_position, config.edges),
        "last_k": last_k,
        "sliding": sliding,
    }


def _figures(nll: np.ndarray) -> dict[str, Any]:
    mean = float(nll.mean())
    # Beyond exp(700) a float64 overflows; a model that far gone is reported at that bound.
    return {"nll": mean, "perplexity": math.exp(min(mean, 700.0)), "tokens": int(nll.size)}


def _binned(nll_nt: np.ndarray, edges: Sequence[int]) -> dict[str, Any]:
    """Bins of positions; column i is the token at position i + 1."""
    starts = [edge for edge in edges if edge <= nll_nt.shape[1]]
    ends = [*starts[1:], nll_nt.shape[1] + 1]
    bins = [
        _figures(nll_nt[:, start - 1 : end - 1]) for start, end in zip(starts, ends, strict=True)
    ]
    return {"edges": starts} | {
        key: [found[key] for found in bins] for key in ("nll", "perplexity", "tokens")
    }
