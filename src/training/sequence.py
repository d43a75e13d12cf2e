"""Sequence parallelism: which rank reads which blocks, and which part of them it runs.

`engine.sequence_parallel=n` makes groups of n neighbouring ranks. The ranks of a group read the
same blocks, and each runs an n-th of the tokens, in the order of the ranks. Only attention looks at
other tokens. There the ranks exchange, so that each sees whole blocks for its share of the heads
(src/training/engine/ulysses.py). The loss is the mean of the losses of the group's ranks.

Shapes: b batch, t tokens of a whole block, c tokens of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Stands in `next_tokens` where no token follows, or none that is to be learnt.
NOTHING = -100


@dataclass(frozen=True)
class Place:
    """A rank's group, and its part of the group's tokens.

    Attributes:
        reader, readers: index of the group, whose ranks read the same blocks, and their number.
        part, parts: index of the part of each block that this rank runs, and their number.
    """

    reader: int = 0
    readers: int = 1
    part: int = 0
    parts: int = 1

    @classmethod
    def of(cls, rank: int, size: int, parts: int) -> Place:
        """The place of a rank among `size` ranks, of which groups of `parts` share their blocks."""
        assert size % parts == 0, "src/planning/plan.py refuses it"
        return cls(rank // parts, size // parts, rank % parts, parts)

    def first(self, tokens: int) -> int:
        """Index of the first token of this rank's part, in blocks of `tokens`."""
        return self.part * (tokens // self.parts)

    def cut(self, rows_bt: np.ndarray) -> np.ndarray:
        """This rank's part of whole blocks, [b, c]."""
        tokens = rows_bt.shape[1]
        assert tokens % self.parts == 0, "src/planning/plan.py refuses it"
        first = self.first(tokens)
        return rows_bt[:, first : first + tokens // self.parts]


def next_tokens(
    rows_bt: np.ndarray, ids_bt: np.ndarray | None = None, learnt_bt: np.ndarray | None = None
) -> np.ndarray:
    """The token after each token, [b, t]; NOTHING after the last of a block or a segment.

    Args:
        ids_bt: number of each token's segment; None if a row is one segment.
        learnt_bt: which tokens are to be learnt; None for all.
    """
    following_bt = np.full_like(rows_bt, NOTHING)
    following_bt[:, :-1] = rows_bt[:, 1:]
    if ids_bt is not None:
        following_bt[:, :-1][ids_bt[:, 1:] != ids_bt[:, :-1]] = NOTHING
    if learnt_bt is not None:
        following_bt[:, :-1][~learnt_bt[:, 1:]] = NOTHING
    return following_bt


def cut_segments(segments: Sequence[int], tokens: int) -> list[int]:
    """Tokens of each segment in the first `tokens` tokens of a block."""
    left, kept = tokens, []
    for size in segments:
        if left <= 0:
            break
        kept.append(min(size, left))
        left -= size
    return kept


def segment_ids(segments: Sequence[int]) -> np.ndarray:
    """Number of each token's segment: int32 [t]."""
    return np.repeat(np.arange(len(segments), dtype=np.int32), segments)


def segment_starts(rows: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """Where each segment of all rows begins in the row of all their tokens: int32 [size + 1].

    Places that are left over hold the number of all tokens, so the last one always does.
    """
    ends = np.cumsum([tokens for segments in rows for tokens in segments])
    starts = np.full(size + 1, ends[-1], dtype=np.int32)
    starts[0] = 0
    starts[1 : len(ends) + 1] = ends
    return starts
