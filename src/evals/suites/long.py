"""Long text: RULER, a needle-depth grid, questions on whole papers, perplexity by position.

Native, scaled and trained models read the same samples, each at the lengths within its window; the
native model also reads longer ones through BM25, as "native + BM25".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from src.assets.pins import AssetError
from src.data import DataError
from src.evals import long_results, packaged, papers, positions
from src.evals.generation import GenerationError
from src.evals.papers import PaperError
from src.evals.positions import PositionsConfig
from src.evals.retrieval import RetrievalConfig, RetrievalError
from src.evals.ruler import TASKS, RulerError, Sample, check_names
from src.evals.ruler.loading import MaterialConfig
from src.evals.ruler.store import SampleStore
from src.evals.ruler.tasks import ALL_TASKS
from src.evals.suite import Evaluation, EvaluationError, ResultTable, SuiteResult
from src.evals.units import PapersUnit, PositionsUnit, Reader, RulerUnit, Session, Unit

Count = Annotated[int, Field(gt=0)]

# Lengths where none are given, as far as a model's window reaches.
LENGTHS = (4096, 8192, 16384, 32768)
MATERIAL = MaterialConfig()
WITH_RETRIEVAL = "{name} + BM25"
# Part of the key of every cached value: to be raised when answers are made or scored differently.
VERSION = 2

# What makes one unit impossible and leaves the others as they are.
FAULTS = (
    *(AssetError, DataError, EvaluationError),
    *(GenerationError, PaperError, RetrievalError, RulerError),
)


@dataclass(frozen=True)
class RulerConfig:
    """RULER's tasks.

    Attributes:
        tasks: names, each of which counts once; null for all thirteen.
        samples: of each task at each length.
        material: where prose, words and questions come from.
    """

    tasks: tuple[str, ...] | None = None
    samples: Count = 100
    material: MaterialConfig = MATERIAL


@dataclass(frozen=True)
class DepthConfig:
    """The needle-depth grid: one needle in prose, at given depths.

    Attributes:
        depths: percent of the context's sentences before the needle.
        samples: of each depth at each length.
    """

    depths: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], Field(min_length=1)] = (
        *(0.0, 25.0, 50.0, 75.0, 100.0),
    )
    samples: Count = 20


@dataclass(frozen=True)
class LongSuite:
    """What of the long suite is run; nothing where a part is null.

    Attributes:
        lengths: in tokens, prompt and answer together; null for 4K, 8K, 16K and 32K as far as some
            model's window reaches.
        ruler: tasks and samples.
        depth: the needle-depth grid.
        papers: whether questions on papers are asked.
        positions: perplexity by position, of the evaluation's held-out text.
        retrieval: how the native model reads what is longer than its window; null to leave it out.
        seed: of the samples.
        limit: samples of each task and depth, papers and segments, at most.
        resamples: of the bootstrap that intervals come from.
        batch_tokens: tokens of a batch of prompts; `auto` fills a GPU's memory.
    """

    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    ruler: RulerConfig | None = None
    depth: DepthConfig | None = None
    papers: bool = False
    positions: PositionsConfig | None = None
    retrieval: RetrievalConfig | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    limit: Count | None = None
    resamples: Count = 1000
    batch_tokens: Literal["auto"] | Count = "auto"

    name: ClassVar[str] = "long"
    needs_run: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shortest = min(self.lengths or LENGTHS)
        if self.positions is not None and shortest <= self.positions.last:
            raise ValueError(
                f"positions.last={self.positions.last} tokens are scored after others, for which "
                f"the length {shortest} has no room: give longer lengths, a smaller "
                "positions.last, or positions=null"
            )

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Misspelt tasks, lengths beyond every window, data that cannot be had."""
        failures: dict[str, str] = {}
        self._units(evaluation, self._readers(evaluation), failures)
        return [f"{what}: {message}" for what, message in failures.items()]

    def run(self, evaluation: Evaluation) -> SuiteResult:
        """Ask every reader everything that fits it.

        Raises:
            EvaluationError: there is nothing to ask, or nobody could be asked.
        """
        failures: dict[str, str] = {}
        readers = self._readers(evaluation)
        units = self._units(evaluation, readers, failures)
        if not units:
            reason = "\n".join(f"{what}: {message}" for what, message in failures.items())
            raise EvaluationError(reason or "eval.long: every part of the suite is null")
        values: dict[str, dict[str, list[Any]]] = {}
        for reader in readers:
            asked = [unit for unit in units if unit.fits(reader)]
            try:
                values[reader.name] = self._values(evaluation, reader, asked, failures)
            except EvaluationError as error:
                failures[reader.name] = str(error)
        if not any(values.values()):
            raise EvaluationError("\n".join(f"{what}: {why}" for what, why in failures.items()))
        if not evaluation.is_main:
            return SuiteResult({})
        content, items = long_results.content(
            readers,
            units,
            values,
            lengths=self._lengths(readers),
            limit=self.limit,
            seed=self.seed,
            resamples=self.resamples,
        )
        return SuiteResult(content, items, failures)

    def _readers(self, evaluation: Evaluation) -> list[Reader]:
        readers = [Reader(c.name, c) for c in evaluation.candidates]
        if self.retrieval is not None:
            natives = evaluation.of_role("native")
            readers += [
                Reader(WITH_RETRIEVAL.format(name=c.name), c, self.retrieval) for c in natives
            ]
        return readers

    def _lengths(self, readers: Sequence[Reader]) -> tuple[int, ...]:
        """The lengths that some model can read whole, all of the given ones."""
        if self.lengths is not None:
            return tuple(sorted(set(self.lengths)))
        longest = max(reader.window for reader in readers)
        return tuple(length for length in LENGTHS if length <= longest)

    def _units(
        self, evaluation: Evaluation, readers: Sequence[Reader], failures: dict[str, str]
    ) -> list[Unit]:
        """Everything there is to ask; what cannot be made is in `failures` instead."""
        longest = max(reader.window for reader in readers)
        lengths = []
        by_length = (self.ruler, self.depth, self.positions)
        if not self._lengths(readers) and any(part is not None for part in by_length):
            failures["lengths"] = (
                f"the longest window of the models, {longest}, is below all of {list(LENGTHS)}, "
                "which are asked where none are given: set eval.long.lengths to at most that"
            )
        for length in self._lengths(readers):
            if length <= longest:
                lengths.append(length)
            else:
                failures[f"length {length}"] = (
                    f"it is beyond the longest window of the models, {longest}: set "
                    "eval.long.lengths to at most that, or evaluate a model that is scaled to more"
                )
        units: list[Unit] = []
        for name, make in self._makers(evaluation, lengths):
            try:
                units.append(make())
            except FAULTS as error:
                failures[name] = str(error)
        return units

    def _makers(
        self, evaluation: Evaluation, lengths: Sequence[int]
    ) -> Iterator[tuple[str, Callable[[], Unit]]]:
        """Names of units and how each is made."""
        material = self.ruler.material if self.ruler is not None else MATERIAL
        store = SampleStore(evaluation.tokenizer, material, self.seed)
        if self.ruler is not None:
            number = self._limited(self.ruler.samples)
            tasks = tuple(dict.fromkeys(self.ruler.tasks or TASKS))
            if evaluation.is_main:
                known = [task for task in tasks if task in ALL_TASKS]
                store.prepare([(task, n) for task in known for n in lengths], number)
            evaluation.agreed(None)  # the others wait for the files
            for task in tasks:
                if task not in ALL_TASKS:
                    yield f"ruler_{task}", partial(_refuse, task)
                    continue
                for length in lengths:
                    samples = partial(store.samples, task, length, number)
                    name = f"ruler_{task}_{length}"
                    yield name, partial(_ruler_unit, name, length, samples)
        if self.depth is not None:
            number = self._limited(self.depth.samples)
            depths = tuple(dict.fromkeys(self.depth.depths))
            for length in lengths:
                samples = partial(store.depths, length, depths, number)
                name = f"needle_depth_{length}"
                yield name, partial(_ruler_unit, name, length, samples)
        if self.papers:
            yield "qasper_yesno", self._papers
        if self.positions is not None and lengths:
            yield "positions", partial(self._positions, evaluation, lengths, self.positions)

    def _papers(self) -> Unit:
        items = papers.questions_of(packaged.documents("qasper_yesno"))
        return PapersUnit(tuple(items[: self.limit]))

    def _positions(
        self, evaluation: Evaluation, lengths: Sequence[int], config: PositionsConfig
    ) -> Unit:
        corpus = evaluation.corpus
        needed = config.needed(lengths)
        try:
            found = positions.segments_of(
                corpus.held_out_documents(), needed, self._limited(config.segments)
            )
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        print_ = corpus.fingerprint(needed)
        return PositionsUnit(found, tuple(lengths), config, f"{print_}/{len(found)}")

    def _limited(self, number: int) -> int:
        return number if self.limit is None else min(number, self.limit)

    def _values(
        self,
        evaluation: Evaluation,
        reader: Reader,
        units: Sequence[Unit],
        failures: dict[str, str],
    ) -> dict[str, list[Any]]:
        """A reader's values by unit, from the cache or by asking it."""
        keys = {unit.name: self._key(evaluation, reader, unit) for unit in units}
        known = evaluation.agreed({n: evaluation.cache.get(key) for n, key in keys.items()})
        missing = [unit for unit in units if known[unit.name] is None]
        if missing:
            with reader.candidate.loaded(
                device=evaluation.device, dtype=evaluation.dtype
            ) as network:
                session = Session(
                    reader,
                    network,
                    evaluation.tokenizer,
                    self.batch_tokens,
                    evaluation.rank,
                    evaluation.size,
                )
                for unit in missing:
                    found, error = _gathered(evaluation, unit, session)
                    if error is not None:
                        failures[f"{reader.name}: {unit.name}"] = error
                        continue
                    known[unit.name] = found
                    if evaluation.is_main:
                        evaluation.cache.put(keys[unit.name], found)
        return {name: found for name, found in known.items() if found is not None}

    def _key(self, evaluation: Evaluation, reader: Reader, unit: Unit) -> dict[str, Any]:
        retrieval = reader.retrieval if unit.shortened(reader) else None
        shortened = None if retrieval is None else [retrieval.chunk_tokens, retrieval.budget]
        return {
            "suite": self.name,
            "version": VERSION,
            **unit.key,
            "window": reader.window,
            "retrieval": shortened,
            "weights": reader.candidate.fingerprint,
            "tokenizer": evaluation.tokenizer_digest,
            "generation": reader.candidate.generation_digest if unit.generates else None,
            "device": evaluation.device,
            "dtype": evaluation.dtype,
        }

    @staticmethod
    def tables(content: Mapping[str, Any]) -> Sequence[ResultTable]:
        """By length, by task, by depth, and perplexities."""
        return long_results.tables(content)

    @staticmethod
    def summary(content: Mapping[str, Any]) -> dict[str, float]:
        """Every task's value, RULER's mean by length, and perplexities of the last tokens."""
        return long_results.summary(content)


def _refuse(task: str) -> Unit:
    check_names([task])
    raise AssertionError(f"{task} is a task after all")


def _ruler_unit(name: str, length: int, samples: Callable[[], list[Sample]]) -> Unit:
    return RulerUnit(name, length, tuple(samples()))


def _gathered(evaluation: Evaluation, unit: Unit, session: Session) -> tuple[list[Any], str | None]:
    """A unit's values in the order of its items, or why there are none; the same on all ranks."""
    values: list[Any] = []
    error = None
    try:
        values = unit.values(session)
    except FAULTS as fault:
        error = str(fault)
    if evaluation.size == 1:
        return values, error
    from torch import distributed

    shares: list[Any] = [None] * evaluation.size
    distributed.all_gather_object(shares, (values, error))
    for _, fault in shares:
        if fault is not None:
            return [], fault
    merged = [None] * sum(len(part) for part, _ in shares)
    for rank, (part, _) in enumerate(shares):
        merged[rank :: evaluation.size] = part
    return merged, None


SUITE = LongSuite
