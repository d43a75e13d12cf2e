"""How many units (lines, words, documents) fill a prompt of a given length.

RULER grows its haystacks in steps until the first sample is full. Here each sample is filled
separately, so that all samples have the length that they are reported under.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.evals.ruler.sample import Match, RulerError, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Samples may fall short of their length by this share of it.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Ruler:
    """Measures prompts of a task with a model's own tokenizer, against one target length.

    Attributes:
        task: its name.
        tokenizer: of the model that will read the prompts.
        length: target for prompt and tokens to generate together.
        max_new_tokens: tokens to generate.
    """

    task: str
    tokenizer: PreTrainedTokenizerBase
    length: int
    max_new_tokens: int

    @property
    def budget(self) -> int:
        """Tokens that a prompt may have."""
        return self.length - self.max_new_tokens

    def measure(self, text: str) -> int:
        """Tokens of a prompt as the model reads it, special tokens included."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def check(self, tokens: int) -> None:
        """Refuse a sample that is too long, or too short.

        Raises:
            RulerError: the sample is not within TOLERANCE below the target.
        """
        total = tokens + self.max_new_tokens
        if not self.length * (1 - TOLERANCE) <= total <= self.length:
            raise RulerError(
                f"{self.task} cannot be made {self.length} tokens long with this tokenizer: the "
                f"nearest is {total}; choose a longer length"
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

        Raises:
            RulerError: as `check`.
        """
        head, context, tail = parts
        tokens = self.measure(head + context + tail)
        self.check(tokens)
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
    do, the result fits but may not be the largest.

    Raises:
        RulerError: not even `least` units fit.
    """
    head, tail = around

    def measure(n: int) -> int:
        return ruler.measure(head + build(n) + tail)

    floor_tokens = measure(least)
    if floor_tokens > ruler.budget:
        raise RulerError(
            f"{ruler.task} at length {ruler.length}: the smallest sample has "
            f"{floor_tokens + ruler.max_new_tokens} tokens, {ruler.max_new_tokens} of them to be "
            "generated; choose a longer length"
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
