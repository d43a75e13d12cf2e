"""Sequence parallelism: which rank reads which blocks, and which part of them it runs.

`engine.sequence_parallel=n` makes groups of n neighbouring ranks. The ranks of a group read the
same blocks, and each runs an n-th of the tokens, in the order of the ranks. Only attention looks at
other tokens. There the ranks exchange, so that each sees whole blocks for its share of the heads
(src/training/engine/ulysses.py). The loss is the mean of the losses of the group's ranks.

Shapes: b batch, t tokens of a whole block, c tokens of a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Stands in `next_tokens` where no token follows.
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


def next_tokens(rows_bt: np.ndarray) -> np.ndarray:
    """The token after each token, [b, t]; NOTHING after the last."""
    following_bt = np.full_like(rows_bt, NOTHING)
    following_bt[:, :-1] = rows_bt[:, 1:]
    return following_bt
