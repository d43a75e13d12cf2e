"""All settings of a command as frozen dataclasses, which refuse what contradicts itself.

A dataclass that configures one module stands beside that module's code; here they are composed.
YAML becomes these dataclasses in src/settings/loading.py.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from src import tracking as trackers
from src.assets.cache import UserPath
from src.data.config import DataConfig
from src.evals.halves import Split
from src.evals.long import LongConfig
from src.evals.suite import Suite
from src.evals.suites import SUITES
from src.models.adapters import in_fused
from src.models.config import ModelConfig, PositiveInt
from src.models.exporting.config import ExportConfig
from src.models.families import family_of
from src.models.merging import MergeConfig
from src.models.rope import RopeScaling
from src.models.student import StudentConfig
from src.objectives import OBJECTIVES
from src.objectives.base import Objective
from src.objectives.weighted_sum import WeightedSum
from src.settings import budget
from src.settings.budget import Budget
from src.settings.engine import EngineConfig
from src.settings.strict import STRICT, ConfigError, refused_at
from src.tracking import TrackingConfig
from src.training.schedule import StageConfig, StreamConfig

# Names become parts of the names of folders.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}$")]
# Objectives are discovered at run time, so type checkers see the class that all of them share.
if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = Annotated[
        functools.reduce(operator.or_, OBJECTIVES), Field(discriminator="type")
    ]


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


def _kind(stage: object) -> str:
    """The class of a stage, by what it holds; pydantic's messages then name the right keys."""
    merges = isinstance(stage, MergeConfig) or (isinstance(stage, dict) and "merge" in stage)
    return MergeConfig.__name__ if merges else StageConfig.__name__


AnyStage = Annotated[
    Annotated[StageConfig, Tag(StageConfig.__name__)]
    | Annotated[MergeConfig, Tag(MergeConfig.__name__)],
    Discriminator(_kind),
]


@dataclass(frozen=True)
class RecipeConfig:
    """A method: stages in order. A stage trains, or merges with the native model."""

    name: Name
    stages: Annotated[dict[Name, AnyStage], Field(min_length=1)]

    def __post_init__(self) -> None:
        first = next(iter(self.stages))
        if isinstance(self.stages[first], MergeConfig):
            raise ValueError(
                f"stages.{first} merges the model of the stage before it, and is the first: put a "
                "stage that trains before it"
            )

    @property
    def training(self) -> dict[str, StageConfig]:
        """The stages that train."""
        return {n: stage for n, stage in self.stages.items() if isinstance(stage, StageConfig)}


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter, 1711.05101) and clipping of the global gradient norm.

    Attributes:
        max_skipped: steps in a row that may be skipped because a number of them is not finite.
    """

    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    eps: Annotated[float, Field(ge=1e-30, le=1)]
    weight_decay: Annotated[float, Field(ge=0, le=100)]
    clip_norm: Annotated[float, Field(ge=1e-9, le=1e9)]
    max_skipped: PositiveInt = 3


@dataclass(frozen=True)
class LaunchConfig:
    """Who starts the ranks, and how many there are.

    Attributes:
        by: `local` if this program starts ranks on this machine, else the launcher that started it.
        nproc: ranks on each machine.
        nodes: machines; more than one needs a launcher.
        max_restarts: how often ranks that failed are started again, from the newest checkpoint.
    """

    by: Literal["local", "torchrun", "deepspeed", "slurm"] = "local"
    nproc: Annotated[int, Field(gt=0, le=4096)] = 1
    nodes: Annotated[int, Field(gt=0, le=100_000)] = 1
    max_restarts: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.by != "local" and self.max_restarts:
            raise ValueError(
                f"max_restarts={self.max_restarts} is for launch=local: leave it out, and let the "
                "launcher restart its ranks (torchrun has --max-restarts)"
            )
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
    """A checkpoint is written every `every_steps` optimizer steps; the newest `keep` stay."""

    every_steps: PositiveInt
    keep: PositiveInt


@dataclass(frozen=True)
class ChosenSuites:
    """The suites to run. A suite that is null does not run; `long` stands for several suites.

    `every_steps` asks a training run for the perplexity of held-out text and for a few needles at
    every so many optimizer steps (src/training/interim.py); null for none.
    """

    long: LongConfig | None = None
    every_steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        for suite in self.long.suites() if self.long else ():
            if getattr(self, suite.name) is not None:
                raise ValueError(
                    f"{suite.name} is set, and long runs it too: leave out one of them"
                )

    def suites(self) -> list[Suite]:
        """The chosen suites, in the order of their files' names."""
        chosen = {suite.name: suite for suite in self.long.suites()} if self.long else {}
        chosen |= {n: suite for n in SUITES if (suite := getattr(self, n)) is not None}
        return [chosen[name] for name in SUITES if name in chosen]


if TYPE_CHECKING:
    EvalConfig = ChosenSuites
else:
    # Suites are discovered at run time, so the class gets a field for each of them here.
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
        job: number, from 1.
        hash: of the job's config (`multirun.composition.identity`).
    """

    name: Annotated[str, Field(min_length=1)]
    id: Annotated[str, Field(min_length=1)]
    job: PositiveInt
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class RunConfig:
    """Everything a training run needs.

    Attributes:
        budget: tokens of all stages together; null keeps the recipe's tokens. It is applied to
            `recipe` when the config is made.
        allow_oversubscribe: start a run even if the plan says that it does not fit.
        prepare: fetch the weights, tokenize the texts, make the questions of the evaluation, and
            stop: for a machine that has no network.
        plan_for: the device that a dry run plans for.
        sweep: the sweep's job that this run is; null outside sweeps.
        profile: trace a few steps of each stage, and print where their time goes.
        deterministic: let torch use deterministic kernels only, so that two runs on a GPU give the
            same losses.
    """

    experiment: Name
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
    export: ExportConfig = field(default_factory=ExportConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    budget: Budget | None = None
    tags: tuple[str, ...] = ()
    run_dir: UserPath | None = None
    dry_run: bool = False
    prepare: bool = False
    resume: UserPath | None = None
    allow_oversubscribe: bool = False
    plan_for: Literal["this_machine", "a100", "h100", "h200"] = "this_machine"
    sweep: SweepJob | None = None
    sweep_resume: bool = False
    profile: bool = False
    deterministic: bool = False

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if self.plan_for != "this_machine" and not self.dry_run:
            raise ValueError(
                f"plan_for={self.plan_for} is for dry runs: add dry_run=true, or leave it out"
            )
        if self.prepare and self.dry_run:
            raise ValueError(
                "prepare=true, dry_run=true: the one fetches what the run reads, the other starts "
                "nothing at all; leave one out"
            )
        if self.sweep_resume:
            raise ValueError("sweep_resume=true is for sweeps: add -m, or use resume=RUN_DIR")
        trackers.check_tags(self.tracking, self.tags)
        trained = budget.applied(self._training(), self.budget)
        # In the recipe's order.
        stages = {name: trained.get(name, stage) for name, stage in self.recipe.stages.items()}
        object.__setattr__(self, "recipe", replace(self.recipe, stages=stages))
        # Checked here, so that a target below the native window is refused with the other mistakes.
        self.rope.resolved_factor(self.model.native_window)

    def _training(self) -> dict[str, StageConfig]:
        """The training stages, with projections by the names that the model's family has."""
        fused = family_of(self.model.family).fused
        stages: dict[str, StageConfig] = {}
        for name, stage in self.recipe.training.items():
            with refused_at(f"recipe.stages.{name}.parameters."):
                stages[name] = replace(stage, parameters=in_fused(stage.parameters, fused))
        return stages

    def objectives(self, stage: str) -> dict[str, Objective]:
        """A stage's objectives by stream.

        Raises:
            ConfigError: a stream names one that is not configured.
        """
        objectives: dict[str, Objective] = {}
        for name, stream in self.recipe.training[stage].streams.items():
            with refused_at(f"recipe.stages.{stage}.streams.{name}.objective: "):
                objectives[name] = self.objective.of(stream)
        return objectives


@dataclass(frozen=True)
class EvaluateConfig:
    """`python -m src.evaluate`: a run folder, or a model by name, and the suites.

    Attributes:
        dtype: `auto` is bfloat16 on a GPU and float32 elsewhere.
        fused_kernels: let fused kernels compute norms, RoPE and gated activations
            (src/passes/fused.py) and the attention of new tokens (kernels/cached_attention.py)
            while models write answers. `auto` does so in bfloat16 on a GPU, for models with LLaMA's
            formulas.
        rope: a scaling; the model by name is evaluated as it is and, untrained, with this scaling.
        stages: the models of all of a run's stages, or of the last stage only; `last_alone` leaves
            the native and the untrained scaled model out too.
        compare: folders of other runs, whose final models are evaluated too.
        limit: items of each task, for a quick look; the suites' settings read it.
        split: the half of the items that is asked (src/evals/halves.py); the suites' settings read
            it.
        nproc: processes that share the work, each on a GPU of its own; `auto` starts one for each
            GPU.
        cache: read earlier results from the cache, and write new ones to it.
        out: folder for the results of a model by name; a run's results go to its evals/.
    """

    eval: EvalConfig
    data: DataConfig
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    fused_kernels: Literal["auto"] | bool = "auto"
    model: ModelConfig | None = None
    rope: RopeScaling | None = None
    run: UserPath | None = None
    stages: Literal["all", "last", "last_alone"] = "all"
    compare: tuple[UserPath, ...] = ()
    limit: PositiveInt | None = None
    split: Split = "all"
    nproc: Literal["auto"] | PositiveInt = "auto"
    cache: bool = True
    out: UserPath | None = None

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if (self.run is None) == (self.model is None):
            raise ValueError("give either run=RUN_DIR or model=NAME")
        if self.rope is not None and self.model is None:
            raise ValueError(
                f"rope={self.rope.type} is for model=NAME: run={self.run} has a scaling; "
                "leave it out"
            )
        if self.rope is not None and self.model is not None:
            self.rope.resolved_factor(self.model.native_window)
        if self.compare and self.run is None:
            raise ValueError("compare is for run=RUN_DIR: it adds other runs' models to its own")
        if self.out is not None and self.run is not None:
            raise ValueError(
                f"out={self.out} is for model=NAME: results of run={self.run} go to its evals/; "
                "leave it out"
            )
