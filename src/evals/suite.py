"""The contract of an evaluation suite: its inputs, its results and its methods.

A suite is a frozen dataclass of settings, the group `eval.NAME` of the config. Its class has a
`name`, `needs_run`, `record` (the class of its results), `problems` (refusals before anything
expensive), `run` (models to results) and two readers of its record, `tables` and `summary`. A suite
sees `Candidate`s and plain settings, and never a sharded engine, Hydra or the tracker.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from src.assets.cache import content_digest
from src.data.preparation import prepare_corpus
from src.data.tokenization import tokenizer_identity
from src.evals.cache import ResultCache
from src.evals.seconds import SECONDS
from src.models.config import ModelError
from src.models.hf_config import native_config, scaled_config
from src.models.loading import load_model, load_tokenizer
from src.models.sources import local_folder
from src.planning.devices import device_of, dtype_of, host_memory
from src.results import ModelRecord, Role, SuiteResults

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from src.data.config import DataConfig
    from src.data.corpus import Corpus
    from src.models.config import ModelConfig
    from src.models.rope import RopeScaling

# In titles of tables, between the name of a figure and its limit of items.
LIMITED = ", a quick look: limit="
# Models that take at most this share of a device's memory together stay loaded between suites.
KEPT_SHARE = 0.1
# The error of a model that has diverged.
NOT_FINITE = "the model's logits are not finite: it has diverged, and there is nothing to measure"


class EvaluationError(ValueError):
    """A suite, a task or a model that cannot be evaluated; the message says why and what to do."""


@dataclass(frozen=True)
class Candidate:
    """A model that is evaluated."""

    name: str  # its name in results: `native`, `scaled`, `after STAGE`, or the model's own name
    role: Role  # its role in scores; `comparison` is another run's final model
    model: ModelConfig  # the source of the weights and the tokenizer
    scaling: RopeScaling | None = None  # its RoPE scaling; None for native RoPE
    weights: Path | None = None  # a folder with its own weights; None for the model's source

    @property
    def identity(self) -> dict[str, Any]:
        """Fields of its record: name, role and hash."""
        return {"name": self.name, "role": self.role, "weights": self.fingerprint}

    @property
    def window(self) -> int:
        """Its window, in tokens."""
        return self.model.native_window if self.scaling is None else self.scaling.target_length

    def config(self) -> PretrainedConfig:
        """Its transformers config, with its RoPE."""
        if self.scaling is None:
            return native_config(self.model)
        return scaled_config(self.model, self.scaling)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of its weights, and of the config that they are loaded under."""
        config = json.loads(self.config().to_json_string(use_diff=False))
        # The path of the weights does not change the model.
        config.pop("_name_or_path", None)
        weights = [f"{file.name} {content_digest(file)}" for file in self._weight_files()]
        if not weights:
            import torch

            weights = [json.dumps([asdict(self.model), torch.__version__], sort_keys=True)]
        parts = [*weights, json.dumps(config, sort_keys=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def generation_digest(self) -> str | None:
        """SHA-256 of its generation_config.json, which says what ends its answers, or None."""
        if self.weights is None and self.model.random_weights:
            return None
        file = (self.weights or local_folder(self.model.source)) / "generation_config.json"
        return content_digest(file) if file.is_file() else None

    def _weight_files(self) -> list[Path]:
        """Files with its weights, in the order of their names; empty if weights are random."""
        if self.weights is None and self.model.random_weights:
            return []
        folder = self.weights or local_folder(self.model.source)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise EvaluationError(
                f"model {self.name!r} has no weights: {folder} holds no *.safetensors; finish the "
                "run with resume=RUN_DIR, or give another model"
            )
        return files

    def load(self, *, device: str, dtype: str, capture: bool) -> PreTrainedModel:
        """The model on its device, in evaluation mode.

        Raises EvaluationError if there are no weights, they are damaged or another model's, or the
        logits are not finite.
        """
        import torch

        self._weight_files()
        with SECONDS.of("loading models"):
            try:
                network = load_model(
                    self.model,
                    self.config(),
                    dtype=dtype_of(dtype),
                    weights=self.weights,
                    capture=capture,
                )
            except ModelError as error:
                # Of this model alone: others go on.
                raise EvaluationError(f"model {self.name!r}: {error}") from error
            # transformers narrows nn.Module.to.
            network.to(device_of(device))  # type: ignore[arg-type]
            ids = torch.arange(8, device=network.device)[None] % network.config.vocab_size
            with torch.no_grad():
                logits = network.eval()(ids, use_cache=False).logits
        if not torch.isfinite(logits).all():
            # The answers of a model that has diverged would be scored like others.
            raise EvaluationError(f"model {self.name!r}: {NOT_FINITE}")
        return network


def _is_small(networks: Iterable[PreTrainedModel], device: torch.device) -> bool:
    """Whether models take little of what memory their device has, taken or free."""
    import torch

    cuda = device.type == "cuda"
    memory = torch.cuda.mem_get_info(device)[1] if cuda else host_memory()
    weights = (weight for network in networks for weight in network.parameters())
    return sum(w.numel() * w.element_size() for w in weights) <= KEPT_SHARE * memory


@dataclass(frozen=True)
class Evaluation:
    """What a suite works on.

    Attributes:
        device, dtype: as in the engine's settings, already resolved: `cpu` or `cuda`, `float32` or
            `bfloat16`.
        fused: whether models write their answers with fused kernels (src/passes/fused.py).
        rank, size: number of this process among those that share the work, and their number. With
            size > 1 torch.distributed is set up; only rank 0's result counts.
    """

    candidates: tuple[Candidate, ...]
    """The models, in the order of the results' rows: native and scaled first where a run is
    evaluated, then what each stage made, then other runs' models."""
    data: DataConfig  # the corpus whose held-out text is used where a suite needs running text
    device: str
    dtype: str
    cache: ResultCache  # results by everything that decides them
    fused: bool = False
    rank: int = 0
    size: int = 1
    kept: dict[tuple[str, bool], PreTrainedModel] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Loaded models, by fingerprint and whether they capture."""

    @contextmanager
    def loaded(self, candidate: Candidate, *, capture: bool = False) -> Iterator[PreTrainedModel]:
        """A candidate's model, kept for the next suite if it is small, freed otherwise.

        With `capture` attention runs through src.passes.capture, so that q, k and v can be
        recorded. Raises as `Candidate.load` does.
        """
        import torch

        key = (candidate.fingerprint, capture)
        network = self.kept.get(key)
        if network is None:
            network = candidate.load(device=self.device, dtype=self.dtype, capture=capture)
            if _is_small((network, *self.kept.values()), network.device):
                self.kept[key] = network
        try:
            yield network
        finally:
            del network
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @property
    def is_main(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that all candidates share."""
        return load_tokenizer(self.candidates[0].model)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of everything that decides how a fast tokenizer encodes and decodes texts."""
        tokenizer = self.tokenizer
        parts = [
            tokenizer_identity(tokenizer),
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.clean_up_tokenization_spaces,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def corpus(self) -> Corpus:
        """The text under that tokenizer; raises as `prepare_corpus`."""
        return prepare_corpus(self.data, self.tokenizer)

    def share(self, items: Sequence[Any]) -> list[Any]:
        """The items of this process: numbers rank, rank + size, ..."""
        return list(items[self.rank :: self.size])

    def agreed(self, value: Any) -> Any:
        """Rank 0's value, sent to all processes that share the work."""
        if self.size == 1:
            return value
        from torch import distributed

        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def of_role(self, *roles: Role) -> tuple[Candidate, ...]:
        """Candidates of these roles."""
        return tuple(c for c in self.candidates if c.role in roles)


_Record = TypeVar("_Record", bound=ModelRecord)


def records_of(
    candidates: Iterable[Candidate], score: Callable[[Candidate], _Record]
) -> tuple[tuple[_Record, ...], dict[str, str]]:
    """Records of the candidates, and errors of the others by name; raises if none has a record."""
    results: list[_Record] = []
    failures: dict[str, str] = {}
    for candidate in candidates:
        try:
            results.append(score(candidate))
        except EvaluationError as error:
            failures[candidate.name] = str(error)
    if not results:
        raise EvaluationError("\n".join(failures.values()))
    return tuple(results), failures


@dataclass(frozen=True)
class ResultTable:
    """A table for the terminal and the tracker, whose key is `name`.

    Cells are numbers, in the format of their column, or strings; None becomes a dash. `notes` are
    lines below the printed table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def cells(self, row: Sequence[Any]) -> list[str]:
        """A row as it is printed."""
        pairs = zip(["-" if cell is None else cell for cell in row], self.formats, strict=True)
        return [cell if isinstance(cell, str) else format(cell, form) for cell, form in pairs]


@dataclass(frozen=True)
class Outcome:
    """The record of a suite, and the lines of its `evals/NAME.items.jsonl`, if it has items.

    The record is None on ranks other than 0. Errors of single tasks or models are in its
    `failures`.
    """

    record: SuiteResults[Any] | None
    items: Sequence[Mapping[str, Any]] = ()


class Suite(Protocol):
    """A frozen dataclass of settings that can be run."""

    name: ClassVar[str]  # of the suite, its settings and its results
    needs_run: ClassVar[bool]
    """Whether it compares models of a run, so that it cannot evaluate a model alone."""
    record: ClassVar[type[SuiteResults[Any]]]  # the class of its results

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """The errors that can be found without loading a model; fetches the data it needs.

        A training run that ends with this suite is refused for any of them before it starts.
        """
        ...

    def run(self, evaluation: Evaluation) -> Outcome:
        """Evaluate all candidates; raises EvaluationError if nothing can be evaluated.

        Errors of single tasks or models are in the record's `failures` instead.
        """
        ...

    @staticmethod
    def tables(record: Any) -> Sequence[ResultTable]:
        """The tables of a record."""
        ...

    @staticmethod
    def summary(record: Any) -> dict[str, float]:
        """A record's figures for the tracker's summary, by path: `eval/MODEL/SUITE/TASK`."""
        ...
