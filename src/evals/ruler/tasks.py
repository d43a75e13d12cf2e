"""RULER's 13 tasks with the parameters of its paper, and the making of their samples.

Source: Hsieh et al., RULER (arXiv 2404.06654), NVIDIA/RULER scripts/synthetic.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from src.evals.ruler.fitting import Ruler, fitted
from src.evals.ruler.material import Material
from src.evals.ruler.niah import Niah
from src.evals.ruler.questions import QuestionAnswering
from src.evals.ruler.sample import RulerError, Sample, stream
from src.evals.ruler.tracing import VariableTracking
from src.evals.ruler.words import CommonWords, FrequentWords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Task = Niah | VariableTracking | CommonWords | FrequentWords | QuestionAnswering

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
    "vt": VariableTracking(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
    "qa_squad": QuestionAnswering("squad"),
    "qa_drop": QuestionAnswering("drop"),
}
# RULER's own second QA task, for users with HotpotQA's file (`MaterialConfig.hotpotqa`).
HOTPOT = "qa_hotpot"
ALL_TASKS: dict[str, Task] = TASKS | {HOTPOT: QuestionAnswering("hotpotqa")}
# The task of the needle-depth grid: niah_single_2 with the needle at a given depth.
DEPTH_TASK = "niah_depth"
DEPTH = TASKS["niah_single_2"]


def check_names(names: Sequence[str]) -> None:
    """Refuse names of unknown tasks.

    Raises:
        RulerError: the message gives the nearest known name.
    """
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
) -> Iterator[Sample]:
    """The samples of a task at a length that have these numbers.

    Each sample has its own random stream, so it is the same however many are made, in any order.

    Raises:
        RulerError: no such task, or the length does not suit it.
    """
    check_names([name])
    task = ALL_TASKS[name]
    ruler = Ruler(name, tokenizer, length, task.max_new_tokens)
    for index in numbers:

        def make(ruler: Ruler, index: int = index) -> Sample:
            draw = stream("ruler", seed, name, length, index)
            return task.sample(index, draw, ruler, material)

        yield fitted(make, ruler)


def depth_samples(
    length: int,
    depths: Sequence[float],
    number: int,
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
) -> Iterator[Sample]:
    """`number` samples at each depth (percent of the context's sentences before the needle).

    Sample i has the same needle and the same text at every depth.

    Raises:
        RulerError: the length is too short.
    """
    task = DEPTH
    assert isinstance(task, Niah)
    ruler = Ruler(DEPTH_TASK, tokenizer, length, task.max_new_tokens)
    for depth, index in product(depths, range(number)):

        def make(ruler: Ruler, index: int = index, depth: float = depth) -> Sample:
            draw = stream("ruler", seed, DEPTH_TASK, length, index)
            return task.sample(index, draw, ruler, material, depth=depth)

        yield fitted(make, ruler)
