"""RULER's 13 tasks with the parameters of its paper, and the making of their samples.

Source: Hsieh et al., RULER (arXiv 2404.06654), NVIDIA/RULER scripts/synthetic.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from src.evals.ruler import tracing, words
from src.evals.ruler.fitting import Ruler, fitted
from src.evals.ruler.material import Material
from src.evals.ruler.niah import Niah
from src.evals.ruler.questions import QuestionAnswering
from src.evals.ruler.sample import RulerError, Sample, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Single(NamedTuple):
    """A task without parameters: its samples, its answer's tokens, its parts of the material."""

    sample: Callable[..., Sample]
    max_new_tokens: int
    uses: frozenset[str] = frozenset()


Task = Niah | QuestionAnswering | Single

# Part of the key of cached samples. Raise it when a prompt changes, or how samples are written.
VERSION = 2

TASKS: dict[str, Task] = {
    "niah_single_1": Niah("noise", "words", "numbers"),
    "niah_single_2": Niah("prose", "words", "numbers"),
    "niah_single_3": Niah("prose", "words", "uuids"),
    "niah_multikey_1": Niah("prose", "words", "numbers", num_keys=4),
    "niah_multikey_2": Niah("needle", "words", "numbers"),
    "niah_multikey_3": Niah("needle", "uuids", "uuids"),
    "niah_multivalue": Niah("prose", "words", "numbers", num_values=4),
    "niah_multiquery": Niah("prose", "words", "numbers", num_keys=4, num_queries=4),
    "vt": Single(tracing.variable_tracking, tracing.MAX_NEW_TOKENS),
    "cwe": Single(words.common_words, words.COMMON_NEW_TOKENS, words.COMMON_USES),
    "fwe": Single(words.frequent_words, words.FREQUENT_NEW_TOKENS),
    "qa_squad": QuestionAnswering("squad"),
    "qa_drop": QuestionAnswering("drop"),
}
# RULER's own second QA task, for users with HotpotQA's file (`MaterialConfig.hotpotqa`).
HOTPOT = "qa_hotpot"
ALL_TASKS: dict[str, Task] = TASKS | {HOTPOT: QuestionAnswering("hotpotqa")}
# The task of the needle-depth grid: niah_single_2 with the needle at a given depth.
DEPTH_TASK = "niah_depth"


def task_of(name: str) -> Task:
    """A task by name, also the grid's."""
    return TASKS["niah_single_2"] if name == DEPTH_TASK else ALL_TASKS[name]


def check_names(names: Sequence[str]) -> None:
    """Raise RulerError for a name of no task, with the nearest one."""
    for name in names:
        if name not in ALL_TASKS:
            near = difflib.get_close_matches(name, ALL_TASKS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            allowed = ", ".join(ALL_TASKS)
            raise RulerError(f"no RULER task is named {name!r}; {hint}there are {allowed}")


def samples_of(
    name: str,
    length: int,
    numbers: Iterable[int],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    depths: Sequence[float] | None = None,
) -> Iterator[Sample]:
    """The samples of a task at a length that have these numbers.

    Each sample has its own random stream, so it is the same however many are made, in any order.
    With `depths` (percent of the context's sentences before the grid's needle) there are all
    numbers at each depth, every one with the same needle and the same text. Raises RulerError if
    the length does not suit the task.
    """
    task = task_of(name)
    ruler = Ruler(name, tokenizer, length, task.max_new_tokens)
    places = [{}] if depths is None else [{"depth": depth} for depth in depths]
    for place, index in product(places, numbers):

        def make(ruler: Ruler, index: int = index, place: dict[str, float] = place) -> Sample:
            draw = stream("ruler", seed, name, length, index)
            return task.sample(index, draw, ruler, material, **place)

        yield fitted(make, ruler)
