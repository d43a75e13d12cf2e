"""How much of each held-out document also occurs in training documents.

Texts are compared by windows of 64 tokens. The hash of a window is a polynomial of its mixed
tokens, modulo 2**64. Two windows count as equal if their hashes are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from src.data.hashing import Hashes, mix64

WINDOW = 64  # a power of two: hashes are built by doubling
BASE = 0x9E3779B97F4A7C15
FILTER_BITS = 24


@dataclass(frozen=True)
class Overlap:
    """Share of a held-out document's windows that occur in training, and where most of them are."""

    fraction: float
    document: str


def window_hashes(tokens: np.ndarray) -> Hashes:
    """Hash of every window of a 1-d token array: [T] -> [max(0, T - 63)]."""
    hashes = mix64(tokens)
    width, factor = 1, BASE
    while width < WINDOW:
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        width, factor = 2 * width, factor * factor % 2**64
    return hashes


def find_overlaps(
    held_out: Mapping[str, np.ndarray], training: Iterable[tuple[str, np.ndarray]]
) -> dict[str, Overlap]:
    """The overlap of each held-out document that has a window in the training documents."""
    index = _WindowIndex(list(held_out.values()))
    most = np.zeros(len(held_out), dtype=np.int64)
    where = [""] * len(held_out)
    for name, tokens in training:
        shared = index.mark(tokens)
        for owner in np.flatnonzero(shared > most):
            most[owner], where[owner] = shared[owner], name
    return {
        name: Overlap(float(fraction), document)
        for name, fraction, document in zip(held_out, index.fractions(), where, strict=True)
        if document
    }


class _WindowIndex:
    """The windows of some documents, sorted by hash, and which of them have been found."""

    def __init__(self, documents: list[np.ndarray]) -> None:
        parts = [window_hashes(tokens) for tokens in documents]
        hashes = np.concatenate([np.empty(0, np.uint64), *parts])
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.argsort(hashes)
        self.hashes, self.owners = hashes[order], owners[order]
        self.sizes = np.bincount(owners, minlength=len(parts))
        self.met = np.zeros(len(hashes), dtype=bool)
        # Most windows of a training text occur in no held-out text: a table rules those out.
        self.filter = np.zeros(2**FILTER_BITS, dtype=bool)
        self.filter[self._slots(hashes)] = True

    def mark(self, tokens: np.ndarray) -> np.ndarray:
        """Mark the windows of a text; returns how many each document has, [documents]."""
        hashes = window_hashes(tokens)
        candidates = np.unique(hashes[self.filter[self._slots(hashes)]])
        first = np.searchsorted(self.hashes, candidates, side="left")
        counts = np.searchsorted(self.hashes, candidates, side="right") - first
        starts = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(first - starts, counts)
        self.met[places] = True
        return np.bincount(self.owners[places], minlength=len(self.sizes))

    def fractions(self) -> np.ndarray:
        met = np.bincount(self.owners[self.met], minlength=len(self.sizes))
        return met / np.maximum(self.sizes, 1)

    @staticmethod
    def _slots(hashes: Hashes) -> Hashes:
        return hashes >> np.uint64(64 - FILTER_BITS)
