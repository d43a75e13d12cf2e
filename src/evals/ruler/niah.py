"""Needles in a haystack: RULER's eight retrieval tasks.

Wording and composition follow NVIDIA/RULER, scripts/data/synthetic/niah.py and constants.py
(commit c3f5e3b): lines of a noise text, other needles, or prose, with the needles at random places.
"""

from __future__ import annotations

import random
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import ClassVar, Literal

from src.evals.ruler.fitting import Ruler, most
from src.evals.ruler.material import Material
from src.evals.ruler.sample import RulerError, Sample, different

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
# RULER changes plural to singular in its template by replacing words; these are the results.
HEAD = {
    False: "Some special magic {kind} are hidden within the following text. Make sure to memorize "
    "it. I will quiz you about the {kind} afterwards.\n",
    True: "A special magic {kind} is hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {kind} afterwards.\n",
}
TAIL = {
    False: "\nWhat are all the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text are",
    True: "\nWhat is the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text is",
}
MAX_NEW_TOKENS = 128
# Keys are drawn until enough of them differ; with fewer pairs of words this might never end.
LEAST_PAIRS = 100
# Places for needles in prose, in percent of its sentences.
DEPTHS = tuple(round(100 * i / 39) for i in range(40))

Kind = Literal["numbers", "words", "uuids"]


@dataclass(frozen=True)
class Niah:
    """One needle task.

    Attributes:
        keys, values: what a needle maps from and to.
    """

    haystack: Literal["noise", "needle", "prose"]
    """`noise` and `needle` are lines, `prose` is text of a book (RULER: essays)."""
    keys: Kind
    values: Kind
    num_keys: int = 1  # keys hidden; all but the queried ones are distractors
    num_values: int = 1  # values of each key
    num_queries: int = 1  # keys asked for

    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS

    @property
    def uses(self) -> frozenset[str]:
        """The parts of the material that the task draws from."""
        prose = {"sentences"} if self.haystack == "prose" else set()
        words = {"adjectives", "nouns"} if "words" in (self.keys, self.values) else set()
        return frozenset(prose | words)

    def sample(
        self,
        index: int,
        draw: random.Random,
        ruler: Ruler,
        material: Material,
        *,
        depth: float | None = None,
    ) -> Sample:
        """One sample that fills the length; `depth` (percent) sets the place of the first needle.

        Raises RulerError if the length is too short for the task, or the material too small.
        """
        self._check(ruler.task, material)
        pairs = self._pairs(draw, material)
        needles = [
            NEEDLE.format(kind=self.values, key=key, value=value)
            for key, values in pairs
            for value in values
        ]
        draw.shuffle(needles)
        asked = draw.sample(pairs, self.num_queries)
        names = [key for key, _ in asked]
        query = names[0] if len(names) == 1 else ", ".join(names[:-1]) + ", and " + names[-1]
        one = self.num_queries * self.num_values == 1
        kind = self.values[:-1] if one else self.values
        head, tail = HEAD[one].format(kind=kind), TAIL[one].format(kind=kind, query=query)
        if self.haystack == "prose":
            depths = draw.sample(DEPTHS, len(needles)) if depth is None else [depth]
            context = self._prose(needles, depths, draw, ruler, material, (head, tail))
        else:
            taken = {key for key, _ in pairs}
            context = self._lines(needles, taken, draw, ruler, material, (head, tail))
        outputs = [value for _, values in asked for value in values]
        parts = (head, context, tail)
        return ruler.sample(index, parts, query=query, outputs=outputs, depth=depth)

    def _check(self, name: str, material: Material) -> None:
        if "sentences" in self.uses and not material.sentences:
            raise RulerError(
                f"{name} has no prose to hide anything in: give material.prose texts that "
                "are not empty"
            )
        adjectives, nouns = len(material.adjectives), len(material.nouns)
        if "nouns" in self.uses and adjectives * nouns < LEAST_PAIRS:
            raise RulerError(
                f"{name} draws different pairs of an adjective and a noun, but "
                f"material.words has {adjectives} and {nouns} of them: give at least "
                f"{LEAST_PAIRS} pairs"
            )

    def _pairs(self, draw: random.Random, material: Material) -> list[tuple[str, list[str]]]:
        """Distinct keys, each with distinct values."""
        keys = different(partial(one_of, self.keys, draw, material), self.num_keys)
        number = self.num_keys * self.num_values
        values = different(partial(one_of, self.values, draw, material), number)
        step = self.num_values
        return [(key, values[i * step : (i + 1) * step]) for i, key in enumerate(keys)]

    def _prose(
        self,
        needles: Sequence[str],
        depths: Sequence[float],
        draw: random.Random,
        ruler: Ruler,
        material: Material,
        around: tuple[str, str],
    ) -> str:
        """Needles between the sentences of a book, from a random sentence on, cut at a word."""
        text = _Prose(material.sentences, draw.randrange(len(material.sentences)))

        def context(words: int) -> str:
            sentences = text.first(words)
            places = sorted(int(len(sentences) * depth / 100) for depth in depths)
            parts: list[str] = []
            for start, end, needle in zip([0, *places], places, needles, strict=False):
                parts += [*sentences[start:end], needle]
            return " ".join([*parts, *sentences[places[-1] :]])

        return context(most(context, ruler, least=1, limit=text.words, around=around))

    def _lines(
        self,
        needles: Sequence[str],
        taken: set[str],
        draw: random.Random,
        ruler: Ruler,
        material: Material,
        around: tuple[str, str],
    ) -> str:
        """Lines of noise or of other needles; the rest is filled with words of the noise text.

        RULER adds whole lines only, which can leave more room than this program allows.
        """
        source = random.Random(draw.getrandbits(64))
        places = [draw.random() for _ in needles]
        lines: list[str] = []

        def context(number: int, filler: int) -> str:
            while len(lines) < number:
                lines.append(self._line(source, material, taken))
            chosen = lines[:number]
            for place, needle in zip(sorted(places, reverse=True), needles, strict=True):
                chosen.insert(int(place * number), needle)
            return "\n".join([*chosen, *filling(filler)])

        return filled(context, ruler, least=1, around=around)

    def _line(self, draw: random.Random, material: Material, taken: set[str]) -> str:
        if self.haystack == "noise":
            return NOISE
        key = next(k for k in iter(lambda: one_of(self.keys, draw, material), "") if k not in taken)
        return NEEDLE.format(kind=self.values, key=key, value=one_of(self.values, draw, material))


FILLER = tuple((NOISE + " ").split() * 8)


def filling(words: int) -> list[str]:
    """A last line with the first words of the noise text; no line for zero words."""
    return [" ".join(FILLER[:words])] if words else []


def filled(
    context: Callable[[int, int], str], ruler: Ruler, *, least: int, around: tuple[str, str]
) -> str:
    """A context of so many lines, and then of so many words of `filling`, that it fills a prompt.

    Raises RulerError if not even `least` lines fit.
    """
    lines = most(lambda n: context(n, 0), ruler, least=least, limit=ruler.length, around=around)
    words = most(partial(context, lines), ruler, least=0, limit=len(FILLER), around=around)
    return context(lines, words)


class _Prose:
    """A book's sentences from one of them on, cyclically, counted in words."""

    def __init__(self, sentences: Sequence[str], start: int) -> None:
        self._sentences = [*sentences[start:], *sentences[:start]]
        self._ends = list(accumulate(sentence.count(" ") + 1 for sentence in self._sentences))
        self.words = self._ends[-1]

    def first(self, words: int) -> list[str]:
        """The first words, as sentences; the last sentence may be cut."""
        sentences = bisect_right(self._ends, words)
        taken = self._sentences[:sentences]
        rest = words - (self._ends[sentences - 1] if sentences else 0)
        if rest:
            taken.append(" ".join(self._sentences[sentences].split(" ")[:rest]))
        return taken


def one_of(kind: Kind, draw: random.Random, material: Material) -> str:
    """A random key or value: 7 digits, an adjective-noun pair, or a UUID."""
    if kind == "numbers":
        return str(draw.randint(10**6, 10**7 - 1))
    if kind == "words":
        return f"{draw.choice(material.adjectives)}-{draw.choice(material.nouns)}"
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
