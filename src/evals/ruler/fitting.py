"""How many units (lines, words, documents) fill a prompt of a given length.

RULER grows its haystacks in steps until the first sample is full. Here each sample is filled
separately, so that all samples have the length that they are reported under.

A search tokenizes a prompt a dozen times. Most tokenizers split a text at blanks first, so that its
tokens are the sum of those of its words, and a word is tokenized once. Searches therefore go by
that sum. The finished prompt is tokenized: if the sum was wrong, the sample is made again by a
search that tokenizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from src.evals.ruler.sample import Match, RulerError, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Samples may fall short of their length by this share of it.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Ruler:
    """Measures prompts of a task with a model's own tokenizer, against one target length."""

    task: str  # its name
    tokenizer: PreTrainedTokenizerBase  # of the model that will read the prompts
    length: int  # target for prompt and tokens to generate together
    max_new_tokens: int  # tokens to generate
    exact: bool = True  # whether a search tokenizes whole prompts, and not their words

    @property
    def budget(self) -> int:
        """Tokens that a prompt may have."""
        return self.length - self.max_new_tokens

    def measure(self, text: str) -> int:
        """Tokens of a prompt as the model reads it, special tokens included."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def tokens(self, text: str) -> int:
        """What a search takes for the tokens of a prompt."""
        return self.measure(text) if self.exact else _words_of(self.tokenizer).tokens(text)

    def check(self, tokens: int) -> None:
        """Raise RulerError for a sample that is too long, or too short by TOLERANCE."""
        total = tokens + self.max_new_tokens
        if not self.length * (1 - TOLERANCE) <= total <= self.length:
            raise RulerError(
                f"{self.task} cannot be made {self.length} tokens long with this tokenizer: the "
                f"nearest is {total}; choose a longer length, or leave the task out"
            )

    def sample(
        self,
        index: int,
        parts: tuple[str, str, str],
        *,
        query: str,
        outputs: Sequence[str],
        match: Match = "all",
        depth: float | None = None,
    ) -> Sample:
        """A sample of head, context and tail, measured and checked.

        Raises RulerError as `check` does, and if the search went by a wrong number of tokens.
        """
        head, context, tail = parts
        text = head + context + tail
        tokens = self.measure(text)
        self.check(tokens)
        if not self.exact and self.tokens(text) != tokens:
            raise RulerError(f"{self.task}: the tokens of its words are not those of the text")
        return Sample(
            task=self.task,
            length=self.length,
            index=index,
            head=head,
            context=context,
            tail=tail,
            query=query,
            outputs=tuple(outputs),
            match=match,
            prompt_tokens=tokens,
            max_new_tokens=self.max_new_tokens,
            depth=depth,
        )


def fitted(make: Callable[[Ruler], Sample], ruler: Ruler) -> Sample:
    """What `make` returns by searches over words or, where these are wrong, over whole prompts.

    `make` makes the same sample whenever it is called; raises as it does with an exact ruler.
    """
    try:
        return make(replace(ruler, exact=False))
    except RulerError:
        return make(replace(ruler, exact=True))


class _Words:
    """Tokens of a text as the sum over its words, each with the blank before it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Any letter does, since no word is tokenized together with the one before it.
        (self._letter,) = self._count(["a"])
        self._first: dict[str, int] = {}
        self._further: dict[str, int] = {}

    def tokens(self, text: str) -> int:
        first, *further = text.split(" ")
        try:
            return self._first[first] + sum(map(self._further.__getitem__, further))
        except KeyError:
            self._first[first], *_ = self._count([first])
            new = list(set(further) - self._further.keys())
            counts = self._count([f"a {word}" for word in new]) if new else []
            self._further |= zip(new, (n - self._letter for n in counts), strict=True)
            return self._first[first] + sum(map(self._further.__getitem__, further))

    def _count(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self._tokenizer(texts, verbose=False)["input_ids"]]


_words_of = lru_cache(maxsize=1)(_Words)
"""The words of the latest tokenizer, for all samples that a process makes."""


def most(
    build: Callable[[int], str],
    ruler: Ruler,
    *,
    least: int,
    limit: int,
    around: tuple[str, str] = ("", ""),
) -> int:
    """The largest number n of units, `least` <= n <= `limit`, whose prompt is within budget.

    The prompt is build(n) between the texts `around` it. Tokens should grow with n. If they hardly
    do, the result fits but may not be the largest. Raises RulerError if not even `least` units fit.
    """
    head, tail = around

    def measure(n: int) -> int:
        return ruler.tokens(head + build(n) + tail)

    floor_tokens = measure(least)
    if floor_tokens > ruler.budget:
        raise RulerError(
            f"{ruler.task} at length {ruler.length}: the smallest sample has "
            f"{floor_tokens + ruler.max_new_tokens} tokens, {ruler.max_new_tokens} of them to be "
            "generated; choose a longer length, or leave the task out"
        )
    # Tokens are nearly linear in n. So steps beyond what fits are aimed a little too far, and those
    # between a number that fits and one that does not land next to the answer; halving in every
    # third round bounds their number where tokens are not linear.
    low, low_tokens = least, floor_tokens
    high, high_tokens = limit + 1, 0
    step, rounds = min(16, limit - least), 0
    while high - low > 1:
        if not high_tokens:
            middle = min(low + max(step, 1), limit)
        elif rounds % 3 == 2:
            middle = (low + high) // 2
        else:
            share = (ruler.budget - low_tokens) / (high_tokens - low_tokens)
            middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        tokens = measure(middle)
        rounds += 1
        if tokens > ruler.budget:
            high, high_tokens = middle, tokens
        else:
            rate = (tokens - low_tokens) / (middle - low)
            low, low_tokens = middle, tokens
            wanted = (ruler.budget - tokens) / rate if rate > 0 else 3 * low
            step = min(int(1.01 * wanted) + 2, 15 * (low + 1))
    return low
