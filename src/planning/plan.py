"""The cost of a run, computed from its config before anything is loaded.

Tokens and steps are exact. Memory and time are estimates from shapes (src/planning/cost.py).
Settings that contradict each other are refused (src/planning/checks.py), and settings that are
`auto` are decided (src/planning/decisions.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from src.models.adapters import FullParameters
from src.models.config import ModelShape, native_rope
from src.models.facts import ModelFacts
from src.models.hf_config import planned_facts, projection_sizes, resolved_shape
from src.planning import checks, cost, duration, fitting
from src.planning.cost import Setting, adapter_parameters
from src.planning.decisions import decide, why_no_graphs
from src.planning.devices import ACCELERATORS, DeviceFacts, device_facts
from src.settings.config import RunConfig
from src.settings.engine import EngineConfig
from src.settings.strict import ConfigError

if TYPE_CHECKING:
    from src.passes.teacher import Keep


# Planned times of blocks that ranks share were up to 27% below the measured ones (docs/scale.md),
# so sharing has to pay off by more.
_DOUBT = 1.4


@dataclass(frozen=True)
class StagePlan:
    """One stage; what is not listed here is as in `cost.Setting`.

    Attributes:
        accumulation: micro-steps a rank adds up in a full step.
        busy: share of the ranks' micro-steps that carry a block of their own.
        stream_tokens: tokens by stream; they add up to `tokens`.
        memory: estimated bytes a rank at the peak, by part.
        flops: floating-point operations of the whole stage, teacher's included.
        seconds_per_step: estimated, of a full step; None for a device of unknown speed.
        no_graphs: why they are not, if that was left to the plan.
    """

    name: str
    tokens: int
    tokens_per_step: int
    steps: int
    accumulation: int
    busy: float
    stream_tokens: dict[str, int]
    trainable_parameters: int
    total_parameters: int
    memory: dict[str, float]
    flops: float
    seconds_per_step: float | None
    checkpointing: bool
    keep: Keep
    micro_batch: int
    graphs: bool
    no_graphs: str | None
    fused: bool

    @property
    def peak(self) -> float:
        """Estimated bytes a rank."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float | None:
        """Estimated training time; None for a device of unknown speed."""
        return None if self.seconds_per_step is None else self.seconds_per_step * self.steps


@dataclass(frozen=True)
class Plan:
    """A run: its stages, how many ranks share the work, and the device of each.

    `engine` is the run's with everything settled that is `auto` and holds for all stages.
    """

    world_size: int
    device: DeviceFacts
    engine: EngineConfig
    stages: tuple[StagePlan, ...]

    @property
    def fits(self) -> bool:
        """Whether the estimate of every stage fits the device."""
        return all(stage.peak <= self.device.usable for stage in self.stages)

    def stage(self, name: str) -> StagePlan:
        """A stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def flops(self) -> float:
        """Floating-point operations of all stages, teacher's included."""
        return sum(stage.flops for stage in self.stages)

    @property
    def offloaded(self) -> float:
        """Estimated bytes of the host that offloading takes, over all ranks.

        For each trained weight AdamW keeps a master weight, two moments and a gradient in float32.
        """
        if not self.engine.student.offload_optimizer:
            return 0.0
        return 16.0 * max(stage.trainable_parameters for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Estimated training time; None for a device of unknown speed."""
        seconds = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(seconds) if len(seconds) == len(self.stages) else None

    @property
    def peak(self) -> float:
        """Estimated bytes a rank, of the stage that needs most."""
        return max(stage.peak for stage in self.stages)


def make(config: RunConfig, *, world_size: int, device: DeviceFacts | None = None) -> Plan:
    """Compute the plan, and refuse settings that contradict each other.

    Args:
        device: of each rank; by default what `plan_for` says.

    Raises:
        ConfigError: a stream names an objective that is not configured; a distillation block
            exceeds the native window; an objective's or a schedule's settings don't fit.
    """
    shape = resolved_shape(config.model)
    checks.check(config, planned_facts(config.model), native_rope(config.model, shape))
    device = device or _device(config)
    settled = partial(_settled_plan, shape=shape, world_size=world_size, device=device)
    if not fitting.is_open(config.engine):
        return settled(config)
    return _best(config, world_size, device, settled)


def _best(
    config: RunConfig, world_size: int, device: DeviceFacts, settled: Callable[[RunConfig], Plan]
) -> Plan:
    """The plan with the engines to take: the fastest of the first group in which some fit.

    If none fits, it is the plan that needs the least memory.
    """
    smallest: Plan | None = None
    refusal: ConfigError | None = None
    for group in fitting.engines(config, world_size, device):
        made: list[Plan] = []
        for engine in group:
            try:
                made.append(settled(replace(config, engine=engine)))
            except ConfigError as error:
                refusal = refusal or error
        if holding := [plan for plan in made if plan.fits]:
            # The first of equals; without a known speed, the first.
            return min(holding, key=_doubted_seconds)
        smallest = min([*filter(None, [smallest]), *made], key=lambda p: p.peak, default=None)
    if smallest is None:
        raise refusal or ConfigError(
            "engine: its settings contradict each other in every combination that auto may choose; "
            "name them, for example engine.student.zero_stage=1 engine.teacher.zero_stage=0"
        )
    return smallest


def _doubted_seconds(plan: Plan) -> float:
    doubt = _DOUBT if plan.engine.sequence_parallel > 1 else 1.0
    return 0.0 if plan.seconds is None else plan.seconds * doubt


def _settled_plan(
    config: RunConfig, *, shape: ModelShape, world_size: int, device: DeviceFacts
) -> Plan:
    """The plan of a run whose engines are settled."""
    facts = planned_facts(config.model)
    checks.check_engine(config, facts, native_rope(config.model, shape), world_size)
    return Plan(
        world_size=world_size,
        device=device,
        engine=config.engine,
        stages=tuple(
            _stage_plan(config, name, shape, facts, world_size, device)
            for name in config.recipe.training
        ),
    )


def _device(config: RunConfig) -> DeviceFacts:
    if config.plan_for != "this_machine":
        return ACCELERATORS[config.plan_for]
    return device_facts(config.engine.device, local_ranks=config.launch.nproc)


def _stage_plan(
    config: RunConfig,
    name: str,
    shape: ModelShape,
    facts: ModelFacts,
    world_size: int,
    device: DeviceFacts,
) -> StagePlan:
    stage = config.recipe.training[name]
    schedule = checks.checked_schedule(config, name)
    trains_all = isinstance(stage.parameters, FullParameters)
    projections = {} if trains_all else projection_sizes(config.model, shape)
    checks.check_projections(config, name, projections)
    adapters = adapter_parameters(stage.parameters, projections, shape.layers)
    setting = decide(Setting(config, stage, shape, facts, adapters, world_size), device)
    checks.check_kernels(setting, device)
    micro_batch, readers = setting.micro_batch, setting.readers
    accumulation = schedule.accumulation(world_size=readers, micro_batch=micro_batch)
    return StagePlan(
        name=name,
        tokens=stage.tokens,
        tokens_per_step=stage.step_tokens,
        steps=schedule.steps,
        accumulation=accumulation,
        busy=duration.busy(setting, schedule),
        stream_tokens=schedule.tokens_read(),
        trainable_parameters=setting.trainable,
        total_parameters=setting.total,
        memory=cost.memory(setting),
        flops=cost.work(setting, schedule).flops,
        seconds_per_step=duration.step_seconds(setting, schedule, device),
        checkpointing=setting.checkpointing,
        keep=setting.keep,
        micro_batch=micro_batch,
        graphs=setting.graphs,
        no_graphs=None if setting.graphs or device.is_cpu else why_no_graphs(setting),
        fused=setting.fused,
    )
