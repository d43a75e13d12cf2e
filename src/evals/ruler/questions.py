"""Question answering among distracting documents: RULER's two QA tasks.

Wording and composition follow NVIDIA/RULER, scripts/data/synthetic/qa.py and constants.py (commit
c3f5e3b): the document that answers the question among others, in random order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from src.evals.ruler.fitting import Ruler, most
from src.evals.ruler.material import Material, Question, QuestionSet
from src.evals.ruler.sample import RulerError, Sample, stream

HEAD = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n"
)
TAIL = (
    "\n\nAnswer the question based on the given documents. Only give me the answer and do not "
    "output any other words.\n\nQuestion: {query} Answer:"
)
MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class QuestionAnswering:
    """Questions of one set (a name in `Material.questions`)."""

    dataset: str

    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS

    @property
    def uses(self) -> frozenset[str]:
        """The parts of the material that the task draws from."""
        return frozenset({self.dataset})

    def sample(self, index: int, draw: random.Random, ruler: Ruler, material: Material) -> Sample:
        """One sample that fills the length.

        Samples of one run have different questions. As in RULER, the documents are those related to
        the one with the answer, then random ones. The last distractor is cut at a word to fill the
        length. Raises RulerError if the length is too short for the answering document or too long
        for all documents, or if there are fewer questions than samples.
        """
        items = material.questions[self.dataset]
        question = _question(ruler.task, index, items)
        others = _distractors(draw, items, question)
        if not others:
            raise RulerError(
                f"{ruler.task} needs documents beside the one that answers, but {items.name} has "
                "no other: give a larger file"
            )
        order = draw.getrandbits(64)
        tail = TAIL.format(query=question.text)
        gold = items.documents[question.document]

        def context(number: int, words: int = 0) -> str:
            chosen = [gold, *others[:number]]
            if words:
                chosen.append(" ".join(others[number].split(" ")[:words]))
            random.Random(order).shuffle(chosen)
            return "\n\n".join(f"Document {i}:\n{d}" for i, d in enumerate(chosen, start=1))

        around = (HEAD, tail)
        number = most(context, ruler, least=0, limit=len(others) - 1, around=around)
        # One document more changes the random order, so its first word may not fit.
        gap, limit = partial(context, number), others[number].count(" ") + 1
        words = most(gap, ruler, least=0, limit=limit, around=around)
        if number == len(others) - 1:
            raise RulerError(
                f"{ruler.task} at length {ruler.length} needs more than the {len(items.documents)} "
                f"documents of {items.name}: choose a shorter length"
            )
        parts = (HEAD, context(number, words), tail)
        outputs = question.answers
        return ruler.sample(index, parts, query=question.text, outputs=outputs, match="part")


def _question(name: str, index: int, items: QuestionSet) -> Question:
    """The question of a sample: a random order, the same at every length and seed."""
    if index >= len(items.questions):
        raise RulerError(
            f"{name} has {len(items.questions)} questions, so no sample {index + 1}: ask for "
            "fewer samples"
        )
    order = list(range(len(items.questions)))
    stream(name, "order").shuffle(order)
    return items.questions[order[index]]


def _distractors(draw: random.Random, items: QuestionSet, question: Question) -> list[str]:
    near = [d for d in question.related if d != question.document]
    used = {question.document, *near}
    far = [d for d in range(len(items.documents)) if d not in used]
    draw.shuffle(near)
    draw.shuffle(far)
    return [items.documents[d] for d in (*near, *far)]
