"""The one boundary between YAML and the program.

Hydra composes; `load` turns the result into frozen dataclasses, strictly: an unknown key, a wrong
type, a missing or a contradictory value is refused here with the key's full path and what is
allowed. Nothing below this module sees Hydra or OmegaConf. Dataclasses stand beside the code that
they configure; this module composes them.
"""

from __future__ import annotations

import difflib
import functools
import json
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from src.data import DataConfig
from src.evals.suite import Suite
from src.evals.suites import SUITES
from src.models.config import ModelConfig, PositiveFloat, PositiveInt
from src.models.rope import RopeScaling
from src.objectives import OBJECTIVES
from src.objectives.base import Objective
from src.objectives.weighted_sum import WeightedSum
from src.planning.devices import uses_cuda
from src.settings import budget
from src.settings.budget import Budget
from src.tracking import TrackingConfig
from src.training.schedule import StageConfig, StreamConfig

NonNegative = Annotated[float, Field(ge=0)]
# The set is found at run time, so type checkers see the protocol that all objectives share.
if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = Annotated[
        functools.reduce(operator.or_, OBJECTIVES), Field(discriminator="type")
    ]


class ConfigError(ValueError):
    """A setting that was refused. The message names the key, the value and what is allowed."""


@dataclass(frozen=True)
class RecipeConfig:
    """A method: stages in order."""

    name: str
    stages: Annotated[dict[str, StageConfig], Field(min_length=1)]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Objectives by the name that streams refer to.

    `allow_beyond_native` lets a distillation block be longer than the teacher's native window.
    """

    terms: Annotated[dict[str, AnyObjective], Field(min_length=1)]
    allow_beyond_native: bool = False

    def of(self, stream: StreamConfig) -> Objective:
        """A stream's objective, or the weighted sum of several.

        Raises:
            ConfigError: a name that `terms` does not have.
        """
        for name in stream.terms:
            if name not in self.terms:
                raise ConfigError(
                    f"{name!r} is not configured; objective.terms has {', '.join(self.terms)}"
                )
        if isinstance(stream.objective, str):
            return self.terms[stream.objective]
        return WeightedSum(tuple((n, self.terms[n], w) for n, w in stream.terms.items()))


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter, 1711.05101) and clipping of the global gradient norm."""

    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    eps: PositiveFloat
    weight_decay: NonNegative
    clip_norm: PositiveFloat


@dataclass(frozen=True)
class StudentEngineConfig:
    """DeepSpeed's settings for the student, and how its step is computed.

    Attributes:
        gradient_checkpointing: run each layer again in the backward pass instead of keeping what it
            computed; `auto` does so in stages that would not fit otherwise (src/planning/plan.py).
        accumulate_in: number format in which gradients of micro-steps are added up; `auto` is
            float32, except where DeepSpeed has none (bfloat16 at zero_stage 0).
        micro_batch: blocks of a stage's longest stream that a rank takes at once, at most; of a
            shorter stream as many as have the same tokens.
    """

    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    accumulate_in: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true needs zero_stage 1, 2 or 3, not 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters=true needs zero_stage 3, not {self.zero_stage}")


@dataclass(frozen=True)
class TeacherEngineConfig:
    """Settings of the frozen teacher.

    Attributes:
        share_base: the student's frozen weights, without adapters and with native RoPE, are the
            teacher: one copy in memory, for stages that train adapters only.
        keep: what it leaves behind for each layer until the student's backward pass: its `qkv`, or
            its `layer_inputs`, which take a third of that and give q, k, v again. `auto` keeps the
            inputs where the student's layers are checkpointed as well; but q, k, v, where they fit,
            of an engine whose weights are divided.
        verify_frozen: hash its weights before and after training; the run fails if they differ.
    """

    zero_stage: Literal[0, 3] = 0
    offload_parameters: bool = False
    share_base: bool = False
    keep: Literal["auto", "layer_inputs", "qkv"] = "auto"
    verify_frozen: bool = True

    def __post_init__(self) -> None:
        if self.share_base and self.zero_stage == 3:
            raise ValueError(
                "share_base=true has no engine for the teacher: leave zero_stage at 0 here; "
                "engine.student.zero_stage=3 shards the weights that both use"
            )
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters=true needs zero_stage 3, not {self.zero_stage}")


@dataclass(frozen=True)
class EngineConfig:
    """Device, number format and both engines.

    `compile` lets torch.compile fuse what lies between the matrix products of each decoder layer;
    it takes a minute at a stage's start. `sequence_parallel` ranks share each block: each runs a
    part of its tokens, and attention and relations of whole blocks for a share of the heads.
    """

    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    student: StudentEngineConfig
    teacher: TeacherEngineConfig
    compile: bool = False
    sequence_parallel: PositiveInt = 1

    def __post_init__(self) -> None:
        student = self.student
        if self.compile and self.sequence_parallel > 1:
            raise ValueError(
                f"compile=true and sequence_parallel={self.sequence_parallel} do not go together: "
                "leave one of them out (layers of long blocks are checkpointed, not compiled)"
            )
        if self.compile and student.gradient_checkpointing is True:
            raise ValueError(
                "compile=true and student.gradient_checkpointing=true do not go together: a "
                "compiled layer chooses itself what it keeps; leave one of them out"
            )
        if self.compile and 3 in (student.zero_stage, self.teacher.zero_stage):
            raise ValueError(
                "compile=true needs whole weights: use zero_stage 0, 1 or 2 for the student and 0 "
                "for the teacher"
            )
        whole = self.dtype == "bfloat16" and student.zero_stage == 0
        if whole and student.accumulate_in == "float32":
            raise ValueError(
                "student.accumulate_in=float32 needs zero_stage 1, 2 or 3 in bfloat16; on one rank "
                "zero_stage=1 costs nothing"
            )
        if self.dtype == "float32" and student.accumulate_in == "bfloat16":
            raise ValueError("student.accumulate_in=bfloat16 is for dtype=bfloat16")

    @property
    def accumulation_dtype(self) -> Literal["float32", "bfloat16"]:
        """Number format in which gradients of micro-steps are added up."""
        if self.student.accumulate_in != "auto":
            return self.student.accumulate_in
        # Without ZeRO, DeepSpeed offers no float32 accumulation of bfloat16 gradients.
        narrow = self.dtype == "bfloat16" and self.student.zero_stage == 0
        return "bfloat16" if narrow else "float32"


@dataclass(frozen=True)
class LaunchConfig:
    """Who starts the ranks, and how many there are.

    Attributes:
        by: `local`, this program on this machine; or the launcher that must have started it.
        nproc: ranks on a machine.
        nodes: machines; more than one needs a launcher.
    """

    by: Literal["local", "torchrun", "deepspeed", "slurm"] = "local"
    nproc: PositiveInt = 1
    nodes: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.by == "local" and self.nodes > 1:
            raise ValueError(
                f"nodes={self.nodes} needs a launcher: use launch=torchrun, launch=deepspeed or "
                "launch=slurm"
            )

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.nproc * self.nodes


@dataclass(frozen=True)
class CheckpointConfig:
    """`every_steps` optimizer steps a checkpoint is written; the newest `keep` of them stay."""

    every_steps: PositiveInt
    keep: PositiveInt


@dataclass(frozen=True)
class ChosenSuites:
    """What is evaluated; nothing where a suite is null."""

    def suites(self) -> list[Suite]:
        """The chosen suites, in the order of their files' names."""
        chosen = [getattr(self, name) for name in SUITES]
        return [suite for suite in chosen if suite is not None]


if TYPE_CHECKING:
    EvalConfig = ChosenSuites
else:
    # A field for each suite, since they are found at run time.
    EvalConfig = make_dataclass(
        "EvalConfig",
        [(name, suite | None, None) for name, suite in SUITES.items()],
        bases=(ChosenSuites,),
        frozen=True,
        namespace={"__doc__": ChosenSuites.__doc__, "__module__": __name__},
    )


@dataclass(frozen=True)
class SweepJob:
    """Which job of which sweep a run is; set by the command that starts the jobs.

    Attributes:
        name: of the sweep, such as `learning_rate`.
        id: of this sweep of that name.
        job: number, from 1.
        hash: of the job's config (src/multirun/identity.py).
    """

    name: Annotated[str, Field(min_length=1)]
    id: Annotated[str, Field(min_length=1)]
    job: PositiveInt
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class RunConfig:
    """Everything a training run needs.

    `budget` is the tokens of all stages together, null for the recipe's own; `recipe` holds what
    follows from it. `allow_oversubscribe` starts a run that the plan says does not fit; `plan_for`
    is the device that a dry run plans for; `sweep` is the job that a sweep has started.
    """

    experiment: str
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    model: ModelConfig
    rope: RopeScaling
    objective: ObjectiveConfig
    data: DataConfig
    engine: EngineConfig
    optim: OptimConfig
    recipe: RecipeConfig
    eval: EvalConfig
    tracking: TrackingConfig
    launch: LaunchConfig
    checkpoint: CheckpointConfig
    budget: Budget | None = None
    tags: tuple[str, ...] = ()
    run_dir: str | None = None
    dry_run: bool = False
    resume: str | None = None
    allow_oversubscribe: bool = False
    plan_for: Literal["this_machine", "a100", "h100", "h200"] = "this_machine"
    sweep: SweepJob | None = None
    sweep_resume: bool = False

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    def __post_init__(self) -> None:
        if self.plan_for != "this_machine" and not self.dry_run:
            raise ValueError(
                f"plan_for={self.plan_for} is for dry runs: add dry_run=true, or leave it out"
            )
        if self.sweep_resume:
            raise ValueError("sweep_resume=true is for sweeps: add -m, or use resume=RUN_DIR")
        stages = budget.applied(self.recipe.stages, self.budget)
        object.__setattr__(self, "recipe", replace(self.recipe, stages=stages))
        # Asked here so that a target below the native window is refused with the rest.
        self.rope.resolved_factor(self.model.native_window)

    def objectives(self, stage: str) -> dict[str, Objective]:
        """A stage's objectives by stream.

        Raises:
            ConfigError: a stream names one that is not configured.
        """
        found: dict[str, Objective] = {}
        for name, stream in self.recipe.stages[stage].streams.items():
            try:
                found[name] = self.objective.of(stream)
            except ConfigError as error:
                path = f"recipe.stages.{stage}.streams.{name}.objective"
                raise ConfigError(f"{path}: {error}") from error
        return found


@dataclass(frozen=True)
class EvaluateConfig:
    """`python -m src.evaluate`: a run folder, or a model by name, and the suites.

    Attributes:
        dtype: `auto` is bfloat16 on a GPU and float32 elsewhere.
        stages: of a run: the models of all its stages, or of the last alone.
        compare: folders of other runs, whose final models are evaluated beside.
        limit: items of each task, for a quick look; the suites' own settings read it.
        nproc: processes that share the work, each with a GPU of its own; `auto` is one for each
            GPU.
        cache: take results that are known already from the cache, and keep new ones there.
        out: folder for the results of a model by name; a run's go to its evals/.
    """

    eval: EvalConfig
    data: DataConfig
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    model: ModelConfig | None = None
    run: str | None = None
    stages: Literal["all", "last"] = "all"
    compare: tuple[str, ...] = ()
    limit: PositiveInt | None = None
    nproc: Literal["auto"] | PositiveInt = "auto"
    cache: bool = True
    out: str | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    def __post_init__(self) -> None:
        if (self.run is None) == (self.model is None):
            raise ValueError("give either run=RUN_DIR or model=NAME")
        if self.compare and self.run is None:
            raise ValueError("compare is for run=RUN_DIR: it adds other runs' models to its own")
        if self.out is not None and self.run is not None:
            raise ValueError(
                f"out={self.out} is for model=NAME: results of run={self.run} go to its evals/; "
                "leave it out"
            )

    @property
    def processes(self) -> int:
        """How many processes share the work."""
        if self.nproc != "auto":
            return self.nproc
        return torch.cuda.device_count() if uses_cuda(self.device) else 1

    @property
    def resolved_dtype(self) -> Literal["float32", "bfloat16"]:
        """The number format of the models."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if uses_cuda(self.device) else "float32"


T = typing.TypeVar("T")

# Arithmetic in settings: `${times:4,${model.native_window}}`, and indices of every second of N
# layers, the last one included: `${every:2,N}`.
OmegaConf.register_new_resolver("times", operator.mul, replace=True)
OmegaConf.register_new_resolver("larger", max, replace=True)
OmegaConf.register_new_resolver(
    "every", lambda step, count: list(range((count - 1) % step, count, step)), replace=True
)


def load(cls: type[T], config: DictConfig | Mapping[str, Any]) -> T:
    """Turn a composed config into the frozen dataclass `cls`.

    Raises:
        ConfigError: anything refused; one line for each fault.
    """
    return load_plain(cls, to_plain(config))


def to_plain(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Interpolations resolved, containers plain.

    Raises:
        ConfigError: a mandatory value is missing, or an interpolation does not resolve.
    """
    try:
        plain = OmegaConf.to_container(
            OmegaConf.create(config),  # type: ignore[arg-type]  # a DictConfig is accepted too
            resolve=True,
            throw_on_missing=True,
        )
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: {reason}; give it a value") from error
    assert isinstance(plain, dict)
    return typing.cast("dict[str, Any]", plain)


def load_plain(cls: type[T], plain: Mapping[str, Any]) -> T:
    """Like `load`, from a plain mapping such as a run folder's config.yaml."""
    adapter = _adapter(cls)
    try:
        # Through JSON, because strict validation then takes lists for tuples and nothing else
        # loosely.
        return adapter.validate_json(json.dumps(plain))
    except ValidationError as error:
        details = error.errors()
        paths = [_locate(cls, detail["loc"])[0] for detail in details]
        # A fault inside one member of a union stands beside "is not" of the other members.
        lines = [
            _explain(cls, detail)
            for detail, path in zip(details, paths, strict=True)
            if not any(len(p) > len(path) > 0 and p[: len(path)] == path for p in paths)
        ]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


@functools.cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    """Making one takes a hundred times as long as what it does."""
    return TypeAdapter(cls)


def _explain(cls: type, detail: Any) -> str:
    path, parent = _locate(cls, detail["loc"])
    name = ".".join(path) or "config"
    kind = detail["type"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name}: {unknown_key(path[-1], allowed_keys(parent))}"
    if kind in ("missing", "missing_argument"):
        return f"{name}: a value is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{name}: {message}" if path else message
    if kind == "union_tag_invalid":
        context = detail["ctx"]
        return f"{name}.type: {context['tag']!r} is not one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{name}.type: a value is missing"
    got = repr(detail["input"])
    return f"{name}: {message[0].lower()}{message[1:]} (got {got[:200]})"


def unknown_key(key: str, allowed: Sequence[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {key!r}; {hint}allowed: {', '.join(allowed) or 'nothing'}"


def allowed_keys(kind: Any) -> list[str]:
    """Field names of a dataclass type; nothing for other types."""
    if isinstance(kind, type) and is_dataclass(kind):
        return [f.name for f in fields(kind)]
    return []


def keys_at(cls: type, path: Sequence[str]) -> list[str]:
    """Keys allowed below a dotted path, over all variants where the type there has several."""
    kinds = [cls]
    for part in path:
        kinds = [child for kind in kinds for child in _children(kind, part)]
    return list(dict.fromkeys(name for kind in kinds for name in allowed_keys(kind)))


def _locate(cls: type, loc: Sequence[str | int]) -> tuple[list[str], Any]:
    """A pydantic location as a config path, without union tags, and the type that holds its end."""
    path: list[str] = []
    kinds: list[Any] = [cls]
    parent: Any = cls
    for part in loc:
        tagged = [k for k in kinds if _tag(k) == part]
        if tagged and len(kinds) > 1:
            kinds = tagged
            continue
        member = isinstance(part, str) and len(kinds) > 1
        if member or not (isinstance(part, int) or any(_holds_keys(kind) for kind in kinds)):
            # pydantic's name for a member of a union, such as dict[str,int].
            named = str(part).partition("[")[0]
            kinds = [k for k in kinds if _plain_name(k) == named] or kinds
            continue
        parent = kinds[0] if kinds else None
        path.append(str(part))
        kinds = [child for kind in kinds for child in _children(kind, part)]
    return path, parent


def _holds_keys(kind: Any) -> bool:
    return is_dataclass(kind) or typing.get_origin(kind) is dict


def _plain_name(kind: Any) -> str:
    return getattr(typing.get_origin(kind) or kind, "__name__", "")


def _tag(kind: Any) -> str | None:
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None
    literal = typing.get_type_hints(kind).get("type")
    arguments = typing.get_args(literal) if typing.get_origin(literal) is Literal else ()
    return arguments[0] if arguments else None


def _children(kind: Any, part: str | int) -> list[Any]:
    if isinstance(kind, type) and is_dataclass(kind):
        hint = typing.get_type_hints(kind, include_extras=True).get(str(part))
        return _variants(hint) if hint is not None else []
    if typing.get_origin(kind) is dict:
        return _variants(typing.get_args(kind)[1])
    if typing.get_origin(kind) is tuple:
        return _variants(typing.get_args(kind)[0])
    return []


def _variants(hint: Any) -> list[Any]:
    """The concrete types in a hint: Annotated unwrapped, unions spread, None left out."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _variants(typing.get_args(hint)[0])
    if origin in (Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        return [v for m in members for v in _variants(m)]
    return [hint]
