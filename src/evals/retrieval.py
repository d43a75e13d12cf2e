"""Retrieval in place of a longer window: BM25 chooses what the model reads.

A context that does not fit is cut into chunks of about equal size, at ends of sentences. BM25
(Robertson and Zaragoza, 2009, in the variant of Lucene, k1 = 1.5 and b = 0.75, by the package
bm25s) ranks them by the question. The prompt gets the best chunks that fit, in their original
order. The instruction, the question and worked examples stay whole. A prompt that fits is left as
it is, so within its window the native model with retrieval equals the native model.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from src.evals.ruler.sample import Sample
from src.evals.suite import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Between chunks that were not neighbours.
GAP = "\n"
# The end of a line, or of a sentence before another that begins with a capital.
_END = re.compile(r"""\n+|(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z])""")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class RetrievalConfig:
    """How contexts are cut."""

    chunk_tokens: Annotated[int, Field(gt=0)] = 128  # approximate tokens of a chunk
    budget: Annotated[int, Field(gt=0)] | None = None
    """Most tokens of prompt and answer together; null for the native window."""


def chunks_of(tokenizer: PreTrainedTokenizerBase, text: str, size: int) -> list[str]:
    """Chunks of about `size` tokens; joined, they are the text.

    A chunk ends with a line or a sentence if it contains such an end, else with a word. So a fact
    that fits a chunk is not cut.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    starts = [start for start, _ in encoded["offset_mapping"]]
    ends = [match.end() for match in _END.finditer(text)]
    cuts = [0]
    while (first := bisect_left(starts, cuts[-1])) + size < len(starts):
        limit = starts[first + size]
        last_end = bisect_right(ends, limit) - 1
        if last_end >= 0 and ends[last_end] > cuts[-1]:
            cuts.append(ends[last_end])
            continue
        space = _SPACE.search(text, limit)
        if space is None:
            break
        cuts.append(space.end())
    if cuts[-1] < len(text):
        cuts.append(len(text))
    return [text[a:b] for a, b in pairwise(cuts)]


def ranked(chunks: list[str], query: str) -> list[int]:
    """Numbers of the chunks, best match of the query first; equal matches keep their order."""
    import bm25s

    tokenize: Any = bm25s.tokenize  # its types do not say that it returns lists of words here
    words, (asked,) = (
        tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
        for texts in (chunks, [query])
    )
    if not asked or not any(words):
        return list(range(len(chunks)))
    index = bm25s.BM25(backend="numpy")
    index.index(words, show_progress=False)
    scores = index.get_scores(asked)
    return sorted(range(len(chunks)), key=lambda i: (-float(scores[i]), i))


def retrieve(
    tokenizer: PreTrainedTokenizerBase,
    around: tuple[str, str],
    context: str,
    query: str,
    *,
    room: int,
    config: RetrievalConfig,
) -> tuple[str, int]:
    """The chunks of a context that fit into `room` tokens with the prompt around it, and the tokens
    of the whole prompt. Raises EvaluationError if that does not fit without any chunk.
    """
    head, tail = around

    def measure(text: str) -> int:
        return len(tokenizer(head + text + tail, verbose=False)["input_ids"])

    tokens = measure(context)
    if tokens <= room:
        return context, tokens
    needed = measure("")
    if needed > room:
        raise EvaluationError(
            f"instruction and question have {needed} tokens, more than the {room} that a "
            "prompt may have: raise retrieval.budget, up to the native window, or set "
            "retrieval=null, or leave the task out"
        )
    chunks = chunks_of(tokenizer, context, config.chunk_tokens)
    order = ranked(chunks, query)
    # Tokens grow with the number of chunks, all but evenly: the largest number that fits.
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if measure(_joined(chunks, order[:middle])) <= room:
            low = middle
        else:
            high = middle
    text = _joined(chunks, order[:low])
    return text, measure(text)


def shortened(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, budget: int, config: RetrievalConfig
) -> Sample:
    """A RULER sample with its context shortened by retrieval; prompt and answer fit `budget`."""
    room, around = budget - sample.max_new_tokens, (sample.head, sample.tail)
    context, tokens = retrieve(
        tokenizer, around, sample.context, sample.query, room=room, config=config
    )
    return replace(sample, context=context, prompt_tokens=tokens)


def _joined(chunks: list[str], chosen: list[int]) -> str:
    parts: list[str] = []
    previous = None
    for number in sorted(chosen):
        if previous is not None and number != previous + 1:
            parts.append(GAP)
        parts.append(chunks[number])
        previous = number
    return "".join(parts)
