"""Scores of the student while it trains: held-out text, and a few needles.

`eval.every_steps` asks for them. They are quick looks at whether training goes well, of a few
items, and not scores to report: `eval=` measures those on the exports.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from src.data.corpus import Corpus
from src.data.documents import DataError
from src.models.loading import load_tokenizer
from src.settings.config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from src.training.engine.student import Student

# The longest window, in tokens, the windows of held-out text, and the needles.
_LONGEST, _WINDOWS, _NEEDLES = 4096, 8, 8
_CITIES = ("Oslo", "Lima", "Cairo", "Delhi", "Quito", "Hanoi", "Dakar", "Turin")


@dataclass(frozen=True)
class Interim:
    """What the student is asked, the same at every step and on every rank.

    Attributes:
        windows: held-out text, int64 [tokens] each.
        needles: text with a sentence to find, which ends in its answer, and the answer's tokens.
    """

    windows: tuple[np.ndarray, ...]
    needles: tuple[tuple[np.ndarray, int], ...]
    device: torch.device

    @classmethod
    def of(cls, config: RunConfig, stage: str, corpus: Corpus, device: torch.device) -> Interim:
        """The questions for a stage, as long as its longest blocks and at most 4096 tokens.

        Raises:
            DataError: there is no held-out text.
        """
        check(config, corpus)
        streams = config.recipe.training[stage].streams.values()
        length = min(_LONGEST, *(stream.length for stream in streams))
        held_out = np.concatenate([ids for _, ids in corpus.held_out_documents()])
        starts = range(0, max(1, len(held_out) - length + 1), length)
        windows = tuple(held_out[a : a + length] for a in list(starts)[:_WINDOWS])
        draw = random.Random(config.seed)
        tokenizer = load_tokenizer(config.model)
        made = (_needle(tokenizer, held_out, length, city, draw) for city in _CITIES[:_NEEDLES])
        return cls(windows, tuple(needle for needle in made if needle is not None), device)

    def figures(self, student: Student) -> dict[str, float]:
        """Perplexity of the windows, and the share of needles found; a collective call.

        A needle is found if each token of its answer is the most likely one.
        """
        losses = [self._asked(student, window)[0] for window in self.windows]
        nll = torch.cat(losses).mean().item()
        figures = {"eval/held_out/loss": nll, "eval/held_out/perplexity": math.exp(min(nll, 700.0))}
        if self.needles:
            answered = [bool(self._asked(student, n)[1][-k:].all()) for n, k in self.needles]
            figures["eval/needles"] = sum(answered) / len(answered)
        return figures

    def _asked(self, student: Student, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        ids_bt = torch.from_numpy(ids)[None].to(self.device)
        losses_bt, right_bt = student.predictions(ids_bt)
        return losses_bt[0], right_bt[0]


def check(config: RunConfig, corpus: Corpus) -> None:
    """Refuse scores while training without text for them.

    Raises:
        DataError: with the remedy.
    """
    if config.eval.every_steps and sum(len(ids) for _, ids in corpus.held_out_documents()) < 2:
        raise DataError(
            f"eval.every_steps: {config.eval.every_steps} needs held-out text, and data="
            f"{config.data.name} has none; name some documents with data.held_out, or set "
            "eval.every_steps=null"
        )


def _needle(
    tokenizer: PreTrainedTokenizerBase,
    haystack: np.ndarray,
    length: int,
    city: str,
    draw: random.Random,
) -> tuple[np.ndarray, int] | None:
    """Text of `length` tokens that hides a number and asks for it; None if it does not fit."""
    number = draw.randint(10_000, 99_999)

    def tokens(text: str) -> Sequence[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    hidden = tokens(f" The secret number of {city} is {number}.")
    question, answer = tokens(f" The secret number of {city} is"), tokens(f" {number}")
    room = length - len(hidden) - len(question) - len(answer)
    if not 0 < room <= len(haystack):
        return None
    start, depth = draw.randint(0, len(haystack) - room), draw.randint(0, room)
    text = haystack[start : start + room]
    parts = [text[:depth], hidden, text[depth:], question, answer]
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]), len(answer)
