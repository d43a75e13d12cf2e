"""Blocks of several sources, each source with its share of the tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from src.data.blocks import Blocks

# 2**64 divided by the golden ratio: its multiples, modulo 2**64, are spread evenly.
_STRIDE = 0x9E3779B97F4A7C15
_CHUNK = 2**16


class MixedBlocks:
    """Blocks of several sources in fixed proportions, with the interface of `Blocks`.

    Which source block i comes from is a function of i alone: the fractional part of i times the
    golden ratio falls into one of the sources' intervals. So every stretch of blocks has the
    sources' shares to within a few blocks, and a run resumes at any index. Each source begins its
    own next epoch when its blocks are used up.

    Args:
        parts: blocks by source, of one length.
        weights: of each source, above 0; shares are in proportion to them.
    """

    def __init__(self, parts: Mapping[str, Blocks], weights: Mapping[str, float]) -> None:
        self.parts = dict(parts)
        self.length = next(iter(parts.values())).length
        weight = np.array([weights[name] for name in self.parts], dtype=np.float64)
        share = weight / weight.sum()
        self.shares = dict(zip(self.parts, share.tolist(), strict=True))
        self._list = list(self.parts.values())
        # Upper ends of the sources' intervals; the last one is open.
        self._bounds = (np.cumsum(share)[:-1] * 2.0**64).astype(np.uint64)
        # Of each block up to a multiple of the chunk: its source, and its number there.
        self._source = np.empty(0, dtype=np.int64)
        self._number = np.empty(0, dtype=np.int64)

    def __getitem__(self, index: int) -> np.ndarray:
        blocks, number = self._locate(index)
        return blocks[number]

    def __len__(self) -> int:
        """Blocks of one epoch of every source."""
        return sum(len(blocks) for blocks in self._list)

    @property
    def packed(self) -> int:
        """Of these, blocks that are made of pieces of documents."""
        return sum(blocks.packed for blocks in self._list)

    @property
    def recipe(self) -> str:
        """How these blocks are made of documents."""
        parts = zip(self.shares.items(), self._list, strict=True)
        return "; ".join(f"{name} {share!r}: {b.recipe}" for (name, share), b in parts)

    @property
    def packable(self) -> int:
        return sum(blocks.packable for blocks in self._list)

    @property
    def available(self) -> int:
        return sum(blocks.available for blocks in self._list)

    def used(self) -> np.ndarray:
        return np.concatenate([blocks.used() for blocks in self._list])

    def read(self, blocks: int) -> np.ndarray:
        counts = self.counts(blocks)
        return np.concatenate([part.read(counts[name]) for name, part in self.parts.items()])

    @property
    def marked(self) -> bool:
        return any(blocks.marked for blocks in self._list)

    def documents(self, index: int) -> list[str]:
        blocks, number = self._locate(index)
        return blocks.documents(number)

    def segments(self, index: int) -> list[int]:
        blocks, number = self._locate(index)
        return blocks.segments(number)

    def learnt(self, index: int) -> np.ndarray | None:
        blocks, number = self._locate(index)
        return blocks.learnt(number)

    @property
    def most_segments(self) -> int:
        return max(blocks.most_segments for blocks in self._list)

    def counts(self, blocks: int) -> dict[str, int]:
        """How many of the first blocks come from each source."""
        self._extend(blocks)
        counted = np.bincount(self._source[:blocks], minlength=len(self._list))
        return dict(zip(self.parts, counted.tolist(), strict=True))

    def _locate(self, index: int) -> tuple[Blocks, int]:
        if index < 0:
            raise IndexError(f"block index must not be negative, not {index}")
        self._extend(index + 1)
        return self._list[self._source[index]], int(self._number[index])

    def _extend(self, blocks: int) -> None:
        """Make the tables long enough for the first blocks."""
        if blocks <= len(self._source):
            return
        size = -(-blocks // _CHUNK) * _CHUNK
        # From 1, since 0 always falls into the first interval.
        with np.errstate(over="ignore"):
            draws = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_STRIDE)
        self._source = np.searchsorted(self._bounds, draws, side="right")
        self._number = np.empty(size, dtype=np.int64)
        for source in range(len(self._list)):
            here = self._source == source
            self._number[here] = np.arange(np.count_nonzero(here))
