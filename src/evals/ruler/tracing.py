"""Variable tracking: RULER's multi-hop task.

Wording and composition follow NVIDIA/RULER, scripts/data/synthetic/variable_tracking.py and
constants.py (commit c3f5e3b): chains of assignments among lines of noise, after a worked example.
RULER draws the example once and renames its variables for each sample. Here each sample has its own
example.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from src.evals.ruler.fitting import Ruler, most
from src.evals.ruler.material import Material
from src.evals.ruler.niah import NOISE, filled, filling
from src.evals.ruler.sample import Sample

HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
TAIL = (
    "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: "
    "According to the chain(s) of variable assignment in the text above, {number} variables are "
    "assigned the value {value}, they are: "
)
MAX_NEW_TOKENS = 30
# The worked example fills this many tokens, but has at least so many noise lines.
EXAMPLE_TOKENS = 500
EXAMPLE_LINES = 5


@dataclass(frozen=True)
class VariableTracking:
    """`num_chains` chains of `num_hops` assignments each; the question is about the first."""

    num_chains: int = 1
    num_hops: int = 4

    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS
    uses: ClassVar[frozenset[str]] = frozenset()

    def sample(self, index: int, draw: random.Random, ruler: Ruler, material: Material) -> Sample:
        """One sample that fills the length.

        Raises:
            RulerError: the length is too short for the task.
        """
        del material
        head = self._example(draw, ruler) + HEAD
        variables, chains, value = self._chains(draw, letters=5)
        places = [_places(draw, self.num_hops + 1) for _ in chains]
        tail = TAIL.format(value=value, number=self.num_hops + 1)

        def context(lines: int, filler: int) -> str:
            return "\n".join([*_hidden(lines, chains, places), *filling(filler)])

        text = filled(context, ruler, least=self.num_hops + 1, around=(head, tail))
        query = f"Find all variables that are assigned the value {value}"
        return ruler.sample(index, (head, text, tail), query=query, outputs=variables)

    def _example(self, draw: random.Random, ruler: Ruler) -> str:
        """A short problem of the same kind with its answer."""
        variables, chains, value = self._chains(draw, letters=3)
        places = [_places(draw, self.num_hops + 1) for _ in chains]
        tail = TAIL.format(value=value, number=self.num_hops + 1)

        def text(lines: int) -> str:
            return HEAD + "\n".join(_hidden(lines, chains, places)) + tail

        lines = EXAMPLE_LINES
        if ruler.tokens(text(lines)) <= EXAMPLE_TOKENS:
            small = replace(ruler, length=EXAMPLE_TOKENS, max_new_tokens=0)
            lines = most(text, small, least=lines, limit=EXAMPLE_TOKENS)
        return f"{text(lines)} {' '.join(variables)}\n\n"

    def _chains(
        self, draw: random.Random, *, letters: int
    ) -> tuple[list[str], list[list[str]], str]:
        """Variables of the first chain, all chains as lines, and the first chain's value."""
        names: dict[str, None] = {}
        while len(names) < self.num_chains * (self.num_hops + 1):
            names["".join(draw.choices(string.ascii_uppercase, k=letters))] = None
        size = self.num_hops + 1
        groups = [list(names)[i * size : (i + 1) * size] for i in range(self.num_chains)]
        values = [str(v) for v in draw.sample(range(10000, 99999), self.num_chains)]
        chains = [
            [f"VAR {group[0]} = {value}"]
            + [f"VAR {new} = VAR {old} " for old, new in pairwise(group)]
            for group, value in zip(groups, values, strict=True)
        ]
        return groups[0], chains, values[0]


def _places(draw: random.Random, number: int) -> list[float]:
    return sorted(draw.random() for _ in range(number))


def _hidden(
    lines: int, chains: Sequence[Sequence[str]], places: Sequence[Sequence[float]]
) -> list[str]:
    """Noise lines with each chain's assignments among them, in their order."""
    text = [NOISE] * lines
    for chain, where in zip(chains, places, strict=True):
        size = len(text)
        for offset, (line, place) in enumerate(zip(chain, where, strict=True)):
            text.insert(int(place * size) + offset, line)
    return text
