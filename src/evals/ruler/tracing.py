"""Variable tracking: RULER's multi-hop task.

Wording and composition follow NVIDIA/RULER, scripts/data/synthetic/variable_tracking.py and
constants.py (commit c3f5e3b): a chain of assignments among lines of noise, after a worked example.
RULER draws the example once and renames its variables for each sample. Here each sample has its own
example.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from src.evals.ruler.fitting import Ruler, most
from src.evals.ruler.material import Material
from src.evals.ruler.niah import NOISE, filled, filling
from src.evals.ruler.sample import Sample, different

HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
TAIL = (
    "\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: "
    "According to the chain(s) of variable assignment in the text above, {number} variables are "
    "assigned the value {value}, they are: "
)
MAX_NEW_TOKENS = 30
VARIABLES = 5  # of a chain, one more than its hops
# The worked example fills this many tokens, but has at least so many noise lines.
EXAMPLE_TOKENS = 500
EXAMPLE_LINES = 5


def variable_tracking(index: int, draw: random.Random, ruler: Ruler, material: Material) -> Sample:
    """One chain of assignments; raises RulerError if the length is too short for it."""
    head = _example(draw, ruler) + HEAD
    variables, chain, value, places = _chain(draw, letters=5)
    tail = TAIL.format(value=value, number=VARIABLES)

    def context(lines: int, filler: int) -> str:
        return "\n".join([*_hidden(lines, chain, places), *filling(filler)])

    text = filled(context, ruler, least=VARIABLES, around=(head, tail))
    query = f"Find all variables that are assigned the value {value}"
    return ruler.sample(index, (head, text, tail), query=query, outputs=variables)


def _example(draw: random.Random, ruler: Ruler) -> str:
    """A short problem of the same kind with its answer."""
    variables, chain, value, places = _chain(draw, letters=3)
    tail = TAIL.format(value=value, number=VARIABLES)

    def text(lines: int) -> str:
        return HEAD + "\n".join(_hidden(lines, chain, places)) + tail

    lines = EXAMPLE_LINES
    if ruler.tokens(text(lines)) <= EXAMPLE_TOKENS:
        small = replace(ruler, length=EXAMPLE_TOKENS, max_new_tokens=0)
        lines = most(text, small, least=lines, limit=EXAMPLE_TOKENS)
    return f"{text(lines)} {' '.join(variables)}\n\n"


def _chain(draw: random.Random, *, letters: int) -> tuple[list[str], list[str], int, list[float]]:
    """Variables, their assignments as lines, the value, and the lines' places from 0 to 1."""
    names = different(lambda: "".join(draw.choices(string.ascii_uppercase, k=letters)), VARIABLES)
    (value,) = draw.sample(range(10000, 99999), 1)
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {new} = VAR {old} " for old, new in pairwise(names)]
    return names, chain, value, sorted(draw.random() for _ in chain)


def _hidden(lines: int, chain: Sequence[str], places: Sequence[float]) -> list[str]:
    """Noise lines with the chain's assignments among them, in their order."""
    text = [NOISE] * lines
    for offset, (line, place) in enumerate(zip(chain, places, strict=True)):
        text.insert(int(place * lines) + offset, line)
    return text
