"""Yes-or-no questions on whole papers (QASPER, arXiv 2105.03011), by likelihood of the answer.

A prompt is the paper (title, abstract, sections under their headings), the question and `Answer:`;
the answer is whichever of ` Yes` and ` No` is likelier. A paper that is longer than the model's
window loses tokens at its end, before the question, and is counted. Most answers are yes: the share
of the commoner answer is what saying it always would score.

Shapes: b inputs, t tokens, h hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from src.progress import meter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHOICES = (" Yes", " No")
# Tokens that a choice may have, at most.
CHOICE_ROOM = 8
# Part of the key under which results are cached: to be raised when a prompt changes.
VERSION = 1


class PaperError(ValueError):
    """A question that a model's window has no room for."""


@dataclass(frozen=True)
class PaperQuestion:
    """A paper, a question on it, and the number of the right choice in CHOICES."""

    paper: str
    question: str
    gold: int

    @property
    def tail(self) -> str:
        """What follows the paper."""
        return f"\n\nQuestion: {self.question}\nAnswer:"


def questions_of(documents: Sequence[Mapping[str, Any]]) -> list[PaperQuestion]:
    """Items of the packaged set."""
    found = []
    for item in documents:
        sections = zip(
            item["full_text"]["section_name"], item["full_text"]["paragraphs"], strict=True
        )
        parts = [item["title"], item["abstract"]]
        for heading, paragraphs in sections:
            # Some sections have no heading, or only the sign that stands between headings.
            title = (heading or "").strip(" :")
            parts += [part for part in (title, *paragraphs) if part.strip()]
        found.append(PaperQuestion("\n\n".join(parts), item["question"], item["gold"]))
    return found


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[PaperQuestion],
    *,
    window: int,
    name: str,
) -> list[dict[str, Any]]:
    """By item: `gold`, `answer` (numbers of choices), `nll` of each choice, `tokens` of the whole
    prompt, and how many of them were `cut`.

    Raises:
        PaperError: the window does not even hold a question.
    """
    results = []
    with meter(f"qasper_yesno, {name}", len(items)) as progress:
        for item in items:
            rows, full, cut = _rows(tokenizer, item, window)
            nll = choice_nll(model, rows)
            answer = min(range(len(nll)), key=nll.__getitem__)
            results.append(
                {"gold": item.gold, "answer": answer, "nll": nll, "tokens": full, "cut": cut}
            )
            progress.advance()
    return results


def _rows(
    tokenizer: PreTrainedTokenizerBase, item: PaperQuestion, window: int
) -> tuple[list[tuple[list[int], int]], int, int]:
    """For each choice the ids and how many belong to the choice; then the prompt's tokens whole,
    and how many were cut."""
    tail = tokenizer(item.tail, add_special_tokens=False)["input_ids"]
    paper = tokenizer(item.paper, verbose=False)["input_ids"]
    choices = [_continuation(tokenizer, item.tail, choice, len(tail)) for choice in CHOICES]
    assert max(len(choice) for choice in choices) <= CHOICE_ROOM
    room = window - len(tail) - CHOICE_ROOM
    if room < 1:
        raise PaperError(
            f"a window of {window} tokens has no room for a question of {len(tail)} tokens"
        )
    prompt = paper[:room] + tail
    rows = [(prompt + choice, len(choice)) for choice in choices]
    return rows, len(paper) + len(tail), max(0, len(paper) - room)


def _continuation(
    tokenizer: PreTrainedTokenizerBase, tail: str, choice: str, before: int
) -> list[int]:
    """A choice's tokens as they are after the question."""
    ids: list[int] = tokenizer(tail + choice, add_special_tokens=False)["input_ids"]
    return ids[before:]


@torch.no_grad()
def choice_nll(model: PreTrainedModel, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Negative log-likelihood, in nats, of the last tokens of each row, so many as it says.

    A row's last token is scored and never read: rows that differ in it alone are one input.
    Inputs are padded at the end, which a causal mask hides from what is scored.
    """
    device = next(model.parameters()).device
    inputs = list(dict.fromkeys(tuple(ids[:-1]) for ids, _ in rows))
    longest = max(len(ids) for ids in inputs)
    ids_bt = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in inputs], device=device)
    hidden_bth = model.get_decoder()(input_ids=ids_bt, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an output head"
    found = []
    for ids, scored in rows:
        at = slice(len(ids) - scored - 1, len(ids) - 1)
        logits = head(hidden_bth[inputs.index(tuple(ids[:-1])), at]).float()
        targets = torch.tensor(ids[len(ids) - scored :], device=device)
        found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item())
    return found
