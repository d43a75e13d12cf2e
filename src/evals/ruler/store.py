"""Samples on disk: made once for each task, length, seed, tokenizer and material."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from src.assets.cache import cache_dir, remove
from src.assets.pins import AssetError
from src.data.documents import DataError
from src.data.tokenization import tokenizer_identity
from src.evals.ruler import loading, sample
from src.evals.ruler.loading import MaterialConfig
from src.evals.ruler.material import Material, QuestionSet
from src.evals.ruler.sample import RulerError, Sample
from src.evals.ruler.tasks import DEPTH_TASK, VERSION, samples_of, task_of
from src.evals.seconds import SECONDS
from src.evals.suite import EvaluationError
from src.progress import meter
from src.run_folder import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One core makes prompts of so many tokens in ten seconds or more; starting a process takes some.
WORTH_PROCESSES = 2_000_000
MOST_WORKERS = 16
# Tokens of the prompts that a process makes at a time: all processes end at about the same time.
PART_TOKENS = 200_000


@dataclass
class SampleStore:
    """Gives samples; reads them from its folder if they have been made before."""

    tokenizer: PreTrainedTokenizerBase  # of the model that will read them
    config: MaterialConfig  # sources of the material, read only to make or identify samples
    seed: int  # of every random choice
    folder: Path | None = None  # the folder of the files; None for the cache

    _parts: dict[str, Any] = field(default_factory=dict)
    _fingerprints: dict[frozenset[str], str] = field(default_factory=dict)

    def material(self, uses: Iterable[str]) -> Material:
        """The parts of the material that a task draws from; the others are empty.

        Raises as `loading.part`.
        """
        for name in uses:
            if name not in self._parts:
                self._parts[name] = loading.part(self.config, name)
        lists = {name: self._parts.get(name, ()) for name in ("sentences", *loading.WORD_FILES)}
        sets = {n: p for n, p in self._parts.items() if isinstance(p, QuestionSet)}
        return Material(**lists, questions=sets)

    def samples(self, task: str, length: int, number: int) -> list[Sample]:
        """The first `number` samples of a task; raises as `make`."""
        make = partial(self.make, task, length, range(number))
        return self._get(self.file(task, length), number, make)

    def depths(self, length: int, depths: Sequence[float], number: int) -> list[Sample]:
        """`number` samples of the depth grid at each depth; raises as `make`."""
        make = partial(self.make, DEPTH_TASK, length, range(number), depths)
        return self._get(self.depth_file(length, depths, number), number * len(depths), make)

    def make(
        self, task: str, length: int, numbers: range, depths: Sequence[float] | None = None
    ) -> Iterator[Sample]:
        """Samples of a task with these numbers, made anew; raises as `samples_of`."""
        return samples_of(
            task,
            length,
            numbers,
            seed=self.seed,
            tokenizer=self.tokenizer,
            material=self.material(task_of(task).uses),
            depths=depths,
        )

    def prepare(self, wanted: Sequence[tuple[str, int]], numbers: Mapping[int, int]) -> None:
        """Make samples of several tasks and lengths at once, in several processes if that pays.

        `numbers` says how many a task has at each length. Samples that cannot be made are left out;
        `samples` says why.
        """
        missing = [pair for pair in wanted if not self._made(*pair, numbers[pair[1]])]
        tokens = sum(length * numbers[length] for _, length in missing)
        workers = min(len(missing), len(os.sched_getaffinity(0)), MOST_WORKERS)
        if workers < 2 or tokens < WORTH_PROCESSES:
            return
        # The longest first, so that none of them is left for the end.
        missing.sort(key=lambda pair: -pair[1])
        with (
            ProcessPoolExecutor(
                workers, get_context("spawn"), initializer=_begin, initargs=(self,)
            ) as pool,
            meter("making RULER samples", sum(numbers[n] for _, n in missing)) as progress,
        ):
            parts = [
                [
                    pool.submit(_part, task, length, start, min(start + size, numbers[length]))
                    for start in range(0, numbers[length], size)
                ]
                for task, length in missing
                for size in [max(1, PART_TOKENS // length)]
            ]
            for (task, length), futures in zip(missing, parts, strict=True):
                number = numbers[length]
                made = chain.from_iterable(part.result() for part in futures)
                with suppress(RulerError):
                    self._get(self.file(task, length), number, lambda made=made: made)
                progress.advance(number)

    def _made(self, task: str, length: int, number: int) -> bool:
        """Whether a task's samples exist, or cannot be made because their material is missing."""
        try:
            return len(_lines(self.file(task, length))) >= number
        except (RulerError, AssetError, DataError, EvaluationError):
            return True

    def file(self, task: str, length: int, note: object = None) -> Path:
        """The file of a task's samples; `note` says what else decides them."""
        uses = task_of(task).uses
        if uses not in self._fingerprints:
            self._fingerprints[uses] = self.material(uses).fingerprint(uses)
        key = {
            "version": VERSION,
            "task": task,
            "length": length,
            "seed": self.seed,
            "tokenizer": self._tokenizer_identity,
            "material": self._fingerprints[uses],
            "note": note,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return (self.folder or cache_dir() / "ruler") / f"{task}-{length}-{digest[:16]}.jsonl"

    def depth_file(self, length: int, depths: Sequence[float], number: int) -> Path:
        """The file of the depth grid's samples."""
        return self.file(DEPTH_TASK, length, {"depths": list(depths), "number": number})

    @cached_property
    def _tokenizer_identity(self) -> str:
        return tokenizer_identity(self.tokenizer)

    def _get(self, path: Path, number: int, make: Callable[[], Iterable[Sample]]) -> list[Sample]:
        """The first samples of a file; makes the file if it has too few."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            try:
                lines = _lines(path)
                if len(lines) >= number:
                    return sample.parse(lines[:number], str(path))
            except RulerError as error:
                print(f"{error}: the file is damaged, and made again", file=sys.stderr)
                remove(path)
            with SECONDS.of("making RULER samples"):
                made = list(make())
            write_whole(path, sample.dump(made).encode())
        return made


def _lines(path: Path) -> list[str]:
    """The lines of a file of samples, if it is there; raises RulerError if it is damaged."""
    if not os.path.lexists(path):
        return []
    try:
        if not path.is_file():
            raise RulerError(f"{path} is not a regular file")
        return path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise RulerError(f"{path} holds no RULER samples ({error})") from error


_worker: SampleStore


def _begin(store: SampleStore) -> None:
    """Give a process of the pool its store, whose material and words it keeps."""
    global _worker
    _worker = store


def _part(task: str, length: int, start: int, stop: int) -> list[Sample]:
    return list(_worker.make(task, length, range(start, stop)))
