"""Samples on disk: made once for each task, length, seed, tokenizer and material."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from src.assets.cache import cache_dir
from src.assets.pins import AssetError
from src.data.documents import DataError
from src.data.tokenization import tokenizer_identity
from src.evals.ruler import loading, sample
from src.evals.ruler.loading import MaterialConfig
from src.evals.ruler.material import Material, QuestionSet
from src.evals.ruler.sample import RulerError, Sample
from src.evals.ruler.tasks import (
    ALL_TASKS,
    DEPTH,
    DEPTH_TASK,
    VERSION,
    depth_samples,
    samples_of,
)
from src.evals.suite import EvaluationError
from src.progress import meter
from src.run_folder import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One core makes prompts of so many tokens in about a minute; starting a process takes seconds.
WORTH_PROCESSES = 2_000_000
MOST_WORKERS = 16


@dataclass
class SampleStore:
    """Gives samples; reads them from its folder if they have been made before.

    Attributes:
        tokenizer: of the model that will read them.
        config: sources of the material, read only to make or identify samples.
        seed: of every random choice.
        folder: the folder of the files; None for the cache.
    """

    tokenizer: PreTrainedTokenizerBase
    config: MaterialConfig
    seed: int
    folder: Path | None = None

    _parts: dict[str, Any] = field(default_factory=dict)
    _fingerprints: dict[frozenset[str], str] = field(default_factory=dict)

    def material(self, uses: Iterable[str]) -> Material:
        """The parts of the material that a task draws from; the others are empty.

        Raises:
            RulerError, AssetError, DataError, EvaluationError: a part cannot be fetched or read.
        """
        for name in uses:
            if name not in self._parts:
                self._parts[name] = loading.part(self.config, name)
        lists = {name: self._parts.get(name, ()) for name in ("sentences", *loading.WORD_FILES)}
        sets = {n: p for n, p in self._parts.items() if isinstance(p, QuestionSet)}
        return Material(**lists, questions=sets)

    def samples(self, task: str, length: int, number: int) -> list[Sample]:
        """The first `number` samples of a task.

        Raises:
            RulerError: they cannot be made at that length.
        """
        return self._get(
            self.file(task, length),
            number,
            lambda: samples_of(
                task,
                length,
                number,
                seed=self.seed,
                tokenizer=self.tokenizer,
                material=self.material(ALL_TASKS[task].uses),
            ),
        )

    def depths(self, length: int, depths: Sequence[float], number: int) -> list[Sample]:
        """`number` samples of the depth grid at each depth.

        Raises:
            RulerError: they cannot be made at that length.
        """
        return self._get(
            self.depth_file(length, depths, number),
            number * len(depths),
            lambda: depth_samples(
                length,
                depths,
                number,
                seed=self.seed,
                tokenizer=self.tokenizer,
                material=self.material(DEPTH.uses),
            ),
        )

    def prepare(self, wanted: Sequence[tuple[str, int]], number: int) -> None:
        """Make samples of several tasks and lengths at once, in several processes if that pays.

        Samples that cannot be made are left out; `samples` says why.
        """
        missing = [(task, length) for task, length in wanted if not self._made(task, length)]
        tokens = sum(length * number for _, length in missing)
        workers = min(len(missing), os.cpu_count() or 1, MOST_WORKERS)
        if workers < 2 or tokens < WORTH_PROCESSES:
            return
        with (
            ProcessPoolExecutor(workers, get_context("spawn")) as pool,
            meter("making RULER samples, tasks and lengths", len(missing)) as progress,
        ):
            # The longest first, so that none of them is left for the end.
            missing.sort(key=lambda pair: -pair[1])
            made = [pool.submit(self.samples, task, length, number) for task, length in missing]
            for future in as_completed(made):
                with suppress(RulerError):
                    future.result()
                progress.advance()

    def _made(self, task: str, length: int) -> bool:
        """Whether a task's samples exist, or cannot be made because their material is missing."""
        try:
            return self.file(task, length).is_file()
        except (RulerError, AssetError, DataError, EvaluationError):
            return True

    def file(self, task: str, length: int) -> Path:
        """The file of a task's samples."""
        return self._file(task, length, ALL_TASKS[task].uses, None)

    def depth_file(self, length: int, depths: Sequence[float], number: int) -> Path:
        """The file of the depth grid's samples."""
        note = {"depths": list(depths), "number": number}
        return self._file(DEPTH_TASK, length, DEPTH.uses, note)

    def _file(self, task: str, length: int, uses: Iterable[str], note: object) -> Path:
        key = {
            "version": VERSION,
            "task": task,
            "length": length,
            "seed": self.seed,
            "tokenizer": self._tokenizer_identity,
            "material": self._fingerprint(uses),
            "note": note,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return (self.folder or cache_dir() / "ruler") / f"{task}-{length}-{digest[:16]}.jsonl"

    @cached_property
    def _tokenizer_identity(self) -> str:
        return tokenizer_identity(self.tokenizer)

    def _fingerprint(self, uses: Iterable[str]) -> str:
        """Hash of the material that these uses draw from."""
        names = frozenset(uses)
        if names not in self._fingerprints:
            self._fingerprints[names] = self.material(names).fingerprint(names)
        return self._fingerprints[names]

    def _get(self, path: Path, number: int, make: Callable[[], Iterable[Sample]]) -> list[Sample]:
        """The first samples of a file; makes the file if it has too few."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file():
                lines = _lines(path)
                if len(lines) >= number:
                    return sample.parse(lines[:number], str(path))
            made = list(make())
            write_whole(path, sample.dump(made).encode())
        return made


def _lines(path: Path) -> list[str]:
    """The lines of a file of samples.

    Raises:
        RulerError: the file is damaged.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RulerError(
            f"{path} holds no RULER samples ({error}): delete the file, it is made again"
        ) from error
