"""The material of prompts: prose, words, questions.

RULER takes essays by Paul Graham, the word lists of the package wonderwords, SQuAD and HotpotQA.
Here the prose is a public-domain book, the words are those of wonderwords, and the second set of
questions is DROP. Sources: src/evals/ruler/loading.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

# A sentence ends with . ! or ?, maybe a closing quote, before a space and a capital or a quote ...
_BOUNDARY = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9])""")
# ... unless one of these stands before it.
_ABBREVIATION = re.compile(r"(?:^|[\s(\"'“‘])(?:Mrs?|Dr|St|Messrs|Capt|Rev|No|vs|[A-Z])\.$")


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, the document with an answer, and related documents."""

    text: str
    answers: tuple[str, ...]
    document: int
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """Questions over documents, under the data set's own name."""

    name: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Material:
    """The material that the tasks draw from.

    Attributes:
        adjectives, nouns, verbs: word lists.
    """

    sentences: tuple[str, ...]  # of a book, in order, single spaces between words
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    questions: Mapping[str, QuestionSet]  # question sets by name

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Each word once, in alphabetical order."""
        return tuple(sorted({*self.adjectives, *self.nouns, *self.verbs}))

    def fingerprint(self, uses: Iterable[str]) -> str:
        """SHA-256 of the named parts: fields of this class, or question sets."""
        parts: dict[str, Any] = {
            name: asdict(self.questions[name]) if name in self.questions else getattr(self, name)
            for name in sorted(uses)
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def sentences_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts as sentences. White space becomes one space, as in RULER."""
    sentences: list[str] = []
    for text in texts:
        flat = " ".join(text.split())
        start = 0
        for match in _BOUNDARY.finditer(flat):
            sentence = flat[start : match.end()].strip()
            if not _ABBREVIATION.search(sentence):
                sentences.append(sentence)
                start = match.end()
        if rest := flat[start:].strip():
            sentences.append(rest)
    return tuple(sentences)
