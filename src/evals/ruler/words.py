"""Common words and frequent words: RULER's two aggregation tasks.

Wording and composition follow NVIDIA/RULER, scripts/data/synthetic/common_words_extraction.py,
freq_words_extraction.py and constants.py (commit c3f5e3b).
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from functools import partial

from src.evals.ruler.fitting import Ruler, most
from src.evals.ruler.material import Material
from src.evals.ruler.sample import RulerError, Sample, different

COMMON_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
COMMON_TAIL = (
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words "
    "that appear most often in the list are:"
)
COMMON_NEW_TOKENS = 120
COMMON_USES = frozenset({"adjectives", "nouns", "verbs"})
MOST_COMMON = 10
# Below this length RULER repeats words less often.
SHORT = 4096

FREQUENT_HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. "
)
FREQUENT_TAIL = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text? Answer: According to the coded text "
    "above, the three most frequently appeared words are:"
)
FREQUENT_NEW_TOKENS = 50
DOTS = "..."  # the commonest word, which is to be ignored
ZETA_2 = math.pi**2 / 6


def common_words(index: int, draw: random.Random, ruler: Ruler, material: Material) -> Sample:
    """Ten words occur 30 times in a numbered list, the others 3 times.

    A worked example comes before the list: 40 words, 10 and 3 times. The last word may occur less
    often than the others, to fill the length. Raises RulerError if the length is too short for the
    task, or needs more words than there are.
    """
    short = ruler.length < SHORT
    common, uncommon = (6, 1) if short else (30, 3)
    shown, *often = (20, 3, 1) if short else (40, 10, 3)
    if len(material.words) < shown:
        raise RulerError(
            f"{ruler.task} needs {shown} different words, but material.words has "
            f"{len(material.words)}: give longer lists"
        )
    head = _example(draw, draw.sample(material.words, shown), *often) + COMMON_HEAD
    words = draw.sample(material.words, len(material.words))
    answer, others = words[:MOST_COMMON], words[MOST_COMMON:]
    order = draw.getrandbits(64)

    def context(entries: int) -> str:
        times, rest = divmod(entries, uncommon)
        listed = answer * common + others[:times] * uncommon + others[times : times + 1] * rest
        return _numbered(listed, order)

    limit = uncommon * len(others)
    entries = most(context, ruler, least=1, limit=limit, around=(head, COMMON_TAIL))
    if entries == limit:
        raise RulerError(
            f"{ruler.task} at length {ruler.length} needs more than the {len(material.words)} "
            "words there are: choose a shorter length"
        )
    query = "What are the 10 most common words in the above list?"
    return ruler.sample(index, (head, context(entries), COMMON_TAIL), query=query, outputs=answer)


def _example(draw: random.Random, words: list[str], common: int, uncommon: int) -> str:
    """A short list with its answer."""
    answer, others = words[:MOST_COMMON], words[MOST_COMMON:]
    listed = _numbered(answer * common + others * uncommon, draw.getrandbits(64))
    answers = " ".join(f"{i}. {word}" for i, word in enumerate(answer, start=1))
    return f"{COMMON_HEAD}{listed}{COMMON_TAIL} {answers}\n"


def _numbered(words: Sequence[str], order: int) -> str:
    shuffled = list(words)
    random.Random(order).shuffle(shuffled)
    return " ".join(f"{i}. {word}" for i, word in enumerate(shuffled, start=1))


def frequent_words(index: int, draw: random.Random, ruler: Ruler, material: Material) -> Sample:
    """Coded words drawn by a zeta distribution with exponent 2; the first is noise (...).

    Raises RulerError if the length is too short for the three words to stand out.
    """
    vocabulary = different(
        lambda: "".join(draw.choices(string.ascii_lowercase, k=6)), max(ruler.budget // 50, 8)
    )
    vocabulary[0] = DOTS
    order = draw.getrandbits(64)

    def counts(words: int) -> list[int]:
        return [int(words * k**-2.0 / ZETA_2) for k in range(1, len(vocabulary) + 1)]

    def context(words: int, dots: int = 0) -> str:
        listed = [DOTS] * dots
        for word, number in zip(vocabulary, counts(words), strict=True):
            listed += [word] * number
        random.Random(order).shuffle(listed)
        return " ".join(listed)

    around = (FREQUENT_HEAD, FREQUENT_TAIL)
    words = most(context, ruler, least=1, limit=2 * ruler.length, around=around)
    # Several words may gain an occurrence at once; noise fills the remaining gap.
    gap = partial(context, words)
    dots = most(gap, ruler, least=0, limit=ruler.length, around=around)
    if not counts(words)[3] > counts(words)[4]:
        raise RulerError(
            f"{ruler.task} at length {ruler.length}: the third most frequent word would be as "
            "frequent as the fourth; choose a longer length, or leave the task out"
        )
    query = "What are the three most frequently appeared words in the above coded text?"
    parts = (FREQUENT_HEAD, context(words, dots), FREQUENT_TAIL)
    return ruler.sample(index, parts, query=query, outputs=vocabulary[1:4])
