"""Asks models: one way through decoder and output head, one cache key, one loop.

A suite describes its tasks as `Probe`s and its models as `Reader`s; `ask` gives the values of each
probe for each reader, from the cache or by loading the model. Several processes share a probe's
items.

Shapes: b rows, t tokens, h hidden size, n scored tokens, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from src.assets.pins import AssetError
from src.data.documents import DataError
from src.evals.retrieval import RetrievalConfig
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.results import Role

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from src.evals.generation import KeptRows

Count = Annotated[int, Field(gt=0)]
# Default lengths of long text, up to the largest window of a model.
LENGTHS = (4096, 8192, 16384, 32768)


def spread_segments(
    documents: Sequence[tuple[str, np.ndarray]], length: int, number: int, *, needed_by: str
) -> np.ndarray:
    """At most `number` segments, int64 [n, length], evenly spaced over all segments.

    Raises EvaluationError if no document is that long; `needed_by` is the setting that needs it.
    """
    starts = [
        tokens[start : start + length]
        for _, tokens in documents
        for start in range(0, len(tokens) - length + 1, length)
    ]
    if not starts:
        longest = max((len(tokens) for _, tokens in documents), default=0)
        raise EvaluationError(
            f"{needed_by} needs {length} tokens of running text, but the longest held-out document "
            f"has {longest}: choose less, or hold out longer documents (data.held_out)"
        )
    chosen = np.linspace(0, len(starts) - 1, min(number, len(starts))).round().astype(int)
    return np.stack([starts[i] for i in chosen]).astype(np.int64)


def perplexity_of(nll: float) -> float:
    """Perplexity of a mean negative log-likelihood in nats.

    Beyond exp(700) a float64 overflows; such a model is reported at that bound.
    """
    return math.exp(min(nll, 700.0))


def settings_of(suite: Any, *left_out: str) -> dict[str, Any]:
    """A suite's settings for a cache's key; `split` counts only if it is a half."""
    settings = asdict(suite)
    both = ("split",) if settings["split"] == "all" else ()
    return {key: value for key, value in settings.items() if key not in (*left_out, *both)}


def cache_key(
    evaluation: Evaluation,
    candidate: Candidate,
    suite: str,
    *,
    generates: bool = False,
    **asked: Any,
) -> dict[str, Any]:
    """The key of a suite's value: the question, the model, its tokenizer, device, number format.

    If the model `generates` answers, its generation_config.json counts too, and whether its kernels
    are fused. `asked` is everything else that decides the value.
    """
    fused = {"fused": True} if generates and evaluation.fused else {}
    return {
        "suite": suite,
        "asked": asked,
        "weights": candidate.fingerprint,
        "window": candidate.window,
        "tokenizer": evaluation.tokenizer_digest,
        "generation": candidate.generation_digest if generates else None,
        "device": evaluation.device,
        "dtype": evaluation.dtype,
        **fused,
    }


@dataclass(frozen=True)
class Reader:
    """A model, and whether it reads long prompts through retrieval."""

    candidate: Candidate  # the model
    retrieval: RetrievalConfig | None = None
    """How contexts are shortened to the model's window; None to read them whole."""

    @property
    def name(self) -> str:
        """Its name in results."""
        return self.candidate.name if self.retrieval is None else f"{self.candidate.name} + BM25"

    @property
    def role(self) -> Role:
        """Its role in results."""
        return self.candidate.role if self.retrieval is None else "retrieval"

    @property
    def window(self) -> int:
        """Tokens that it reads and writes at once."""
        return self.candidate.window

    @property
    def budget(self) -> int:
        """Most tokens of a prompt and its answer: retrieval's budget, or else the window."""
        chosen = self.retrieval and self.retrieval.budget
        return min(chosen or self.window, self.window)

    @property
    def identity(self) -> dict[str, Any]:
        """Fields of its record."""
        return {"name": self.name, "role": self.role, "weights": self.candidate.fingerprint}


def readers_of(evaluation: Evaluation, retrieval: RetrievalConfig | None) -> list[Reader]:
    """All candidates, and the native one with retrieval if the settings say so."""
    natives = evaluation.of_role("native") if retrieval is not None else ()
    return [*map(Reader, evaluation.candidates), *(Reader(c, retrieval) for c in natives)]


@dataclass(frozen=True)
class Session:
    """A reader with its model loaded."""

    reader: Reader
    network: PreTrainedModel
    evaluation: Evaluation

    @cached_property
    def rows(self) -> KeptRows:
        """Rows for answers, which all probes share."""
        from src.evals.generation import KeptRows

        return KeptRows()


@dataclass(frozen=True)
class Probe:
    """One task for a model."""

    name: str  # of the task, in results
    key: Mapping[str, Any]  # everything that decides its values besides the model
    values: Callable[[Session], list[Any]]
    """The JSON values of the process's share of the items; raises a ValueError if the model cannot
    be asked."""
    length: int | None = None  # tokens of prompt and answer; None if any window suffices
    generates: bool = False  # whether the model writes its answers
    items: Sequence[Any] = ()
    """The questions, each with a value; empty if a value is of all questions together."""
    prepare: Callable[[Reader, Evaluation], object] | None = None
    """Does what `values` would do before it needs the model. Another thread calls it while the
    model is loaded, or answers the probe before."""

    def fits(self, reader: Reader) -> bool:
        """Whether this reader can be asked."""
        return (self.length or 0) <= reader.window or reader.retrieval is not None

    def cache_key(self, evaluation: Evaluation, reader: Reader, suite: str) -> dict[str, Any]:
        """The key of its values; a reader whose retrieval omits nothing shares the plain key."""
        retrieval = reader.retrieval
        if self.length is not None and self.length <= reader.budget:
            retrieval = None
        shortened = None if retrieval is None else [retrieval.chunk_tokens, retrieval.budget]
        return cache_key(
            evaluation,
            reader.candidate,
            suite,
            generates=self.generates,
            retrieval=shortened,
            **self.key,
        )


Values = dict[str, dict[str, list[Any]]]
_Made = TypeVar("_Made")


def made(
    makers: Iterable[tuple[str, Callable[[], _Made]]], failures: dict[str, str]
) -> dict[str, _Made]:
    """The results of the functions by name; `failures` gets the errors of the others."""
    by_name: dict[str, _Made] = {}
    for name, make in makers:
        try:
            by_name[name] = make()
        except (AssetError, DataError, EvaluationError) as error:
            failures[name] = str(error)
    return by_name


def ask(
    evaluation: Evaluation,
    suite: str,
    readers: Sequence[Reader],
    probes: Sequence[Probe],
    failures: dict[str, str],
) -> Values:
    """Ask every reader every probe that fits it; returns values by reader's and probe's name.

    `failures` gets the errors. Raises EvaluationError if no reader could be asked any probe.
    """
    values: Values = {}
    for reader in readers:
        fitting = [probe for probe in probes if probe.fits(reader)]
        try:
            values[reader.name] = _values(evaluation, suite, reader, fitting, failures)
        except EvaluationError as error:
            failures[reader.name] = str(error)
    if not any(values.values()):
        lines = "\n".join(f"{what}: {why}" for what, why in failures.items())
        raise EvaluationError(lines or f"eval.{suite}: there is nothing to ask")
    return {name: by_probe for name, by_probe in values.items() if by_probe}


def _values(
    evaluation: Evaluation,
    suite: str,
    reader: Reader,
    probes: Sequence[Probe],
    failures: dict[str, str],
) -> dict[str, list[Any]]:
    """A reader's values by probe, from the cache or by running the model."""
    keys = {probe.name: probe.cache_key(evaluation, reader, suite) for probe in probes}
    # One process decides, since the others may see the cache at another moment.
    cached = evaluation.agreed({name: evaluation.cache.get(key) for name, key in keys.items()})
    missing = [probe for probe in probes if cached[probe.name] is None]
    if missing:
        # The rows for the longest prompts have room for all others.
        missing.sort(key=lambda probe: -(probe.length or 0))
        prepared = _prepared(missing, reader, evaluation)
        first = next(prepared)
        with evaluation.loaded(reader.candidate) as network:
            session = Session(reader, network, evaluation)
            for probe in chain([first], prepared):
                values, error = gathered(probe, session)
                if error is not None:
                    failures[f"{reader.name}: {probe.name}"] = error
                    continue
                cached[probe.name] = values
                if evaluation.is_main:
                    evaluation.cache.put(keys[probe.name], values)
    return {name: values for name, values in cached.items() if values is not None}


def _prepared(probes: Sequence[Probe], reader: Reader, evaluation: Evaluation) -> Iterator[Probe]:
    """The probes, each prepared while the one before is asked; the first two from the start."""
    with ThreadPoolExecutor(1) as ahead:

        def submit(probe: Probe) -> None:
            if probe.prepare is not None:
                # `values` does the same again, so it raises the same errors.
                ahead.submit(probe.prepare, reader, evaluation)

        for number, probe in enumerate(probes):
            for following in probes[number + 1 if number else 0 : number + 2]:
                submit(following)
            yield probe


def gathered(probe: Probe, session: Session) -> tuple[list[Any], str | None]:
    """A probe's values in the order of its items, or its error; the same on all ranks."""
    values: list[Any] = []
    error = None
    try:
        values = probe.values(session)
    except (AssetError, DataError, EvaluationError) as fault:
        error = str(fault)
    size = session.evaluation.size
    if size == 1:
        return values, error
    from torch import distributed

    shares: list[Any] = [None] * size
    distributed.all_gather_object(shares, (values, error))
    for _, fault in shares:
        if fault is not None:
            return [], fault
    merged = [None] * sum(len(part) for part, _ in shares)
    for rank, (part, _) in enumerate(shares):
        merged[rank::size] = part
    return merged, None


def chosen_lengths(
    wanted: Sequence[int] | None, readers: Sequence[Reader], failures: dict[str, str]
) -> list[int]:
    """The lengths of the settings, or the default ones, that some model's window holds.

    `failures` gets the others.
    """
    key = "eval.SUITE.lengths (eval.long.lengths with eval=long)"
    longest = max(reader.window for reader in readers)
    if wanted is None:
        usual = [length for length in LENGTHS if length <= longest]
        if not usual:
            failures["lengths"] = (
                f"the longest window of the models, {longest}, is below all of {list(LENGTHS)}, "
                f"which are asked where none are given: set {key} to at most that"
            )
        return usual
    for length in sorted(set(wanted)):
        if length > longest:
            failures[f"length {length}"] = (
                f"it is beyond the longest window of the models, {longest}: set {key} to "
                "at most that, or evaluate a model that is scaled to more"
            )
    return [length for length in sorted(set(wanted)) if length <= longest]
