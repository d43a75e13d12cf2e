"""Blocks spread over ranks: which rank reads which blocks, and which part of them it runs.

`engine.sequence_parallel=n` puts each n neighbouring ranks into a group. Its ranks read the same
blocks, and each runs a part of their tokens: the first the first n-th, and so on. Only attention
looks at other tokens; there the ranks exchange, and each sees whole blocks for its share of the
heads (src/training/engine/). Each rank has a part of a loss; the loss is their mean over the
group.

Shapes: b batch, t tokens of a whole block, c tokens of a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# In `next_tokens`: no token follows.
NOTHING = -100


@dataclass(frozen=True)
class Place:
    """Where a rank stands.

    Attributes:
        reader, readers: which of the groups it belongs to. The ranks of one read the same blocks.
        part, parts: which part of their tokens it runs.
    """

    reader: int = 0
    readers: int = 1
    part: int = 0
    parts: int = 1

    @classmethod
    def of(cls, rank: int, size: int, parts: int) -> Place:
        """The place of a rank among `size`, of which each `parts` share their blocks."""
        assert size % parts == 0, "src/planning/plan.py refuses it"
        return cls(rank // parts, size // parts, rank % parts, parts)

    def first(self, tokens: int) -> int:
        """The first token of this rank's part, of blocks of so many."""
        return self.part * (tokens // self.parts)

    def cut(self, rows_bt: np.ndarray) -> np.ndarray:
        """This rank's part of whole blocks' tokens, [b, c]."""
        tokens = rows_bt.shape[1]
        assert tokens % self.parts == 0, "src/planning/plan.py refuses it"
        first = self.first(tokens)
        return rows_bt[:, first : first + tokens // self.parts]


def next_tokens(rows_bt: np.ndarray) -> np.ndarray:
    """The token after each one, [b, t]; NOTHING after the last."""
    following_bt = np.full_like(rows_bt, NOTHING)
    following_bt[:, :-1] = rows_bt[:, 1:]
    return following_bt
