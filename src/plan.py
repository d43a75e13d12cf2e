"""What a run will cost, worked out from its config before anything is loaded.

Tokens and steps are exact. Memory and floating-point work are estimates from shapes: weights,
gradients and optimizer states are counted, activations modelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from src.adapters import LoraParameters
from src.config import ConfigError, RunConfig
from src.facts import ModelFacts
from src.models import PLAIN_LAYER_FAMILIES, ModelShape, resolved_shape
from src.objectives.base import Objective
from src.schedule import StageConfig, StageSchedule
from src.streaming import Keep

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        accumulation: micro-steps a rank adds up in a full step.
        busy: share of the ranks' micro-steps that carry a block of their own.
        stream_tokens: tokens by stream; they add up to `tokens`.
        trainable_parameters, total_parameters: of the student.
        memory: estimated bytes a rank, by part.
        flops: floating-point operations of the whole stage, teacher's included.
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


@dataclass(frozen=True)
class Plan:
    """A run: its stages, and how many ranks share the work."""

    model: str
    method: str
    factor: float
    native_window: int
    target_length: int
    world_size: int
    stages: tuple[StagePlan, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)


def make(config: RunConfig, *, world_size: int) -> Plan:
    """Work the plan out, and refuse settings that contradict each other.

    Raises:
        ConfigError: a stream names an objective that is not configured; a distillation block
            exceeds the native window; an objective's or a schedule's settings don't fit.
    """
    shape = resolved_shape(config.model)
    facts = ModelFacts(
        layers=shape.layers,
        windows=(config.model.sliding_window,) * shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    for name in config.recipe.stages:
        _check_streams(config, name, facts)
    _check_teacher(config, facts)
    return Plan(
        model=config.model.name,
        method=config.recipe.name,
        factor=config.rope.resolved_factor(config.model.native_window),
        native_window=config.model.native_window,
        target_length=config.rope.target_length,
        world_size=world_size,
        stages=tuple(
            _stage_plan(config, name, shape, facts, world_size) for name in config.recipe.stages
        ),
    )


def _check_streams(config: RunConfig, stage: str, facts: ModelFacts) -> None:
    window = config.model.native_window
    for name, stream in config.recipe.stages[stage].streams.items():
        path = f"recipe.stages.{stage}.streams.{name}"
        objective = config.objective.terms.get(stream.objective)
        if objective is None:
            raise ConfigError(
                f"{path}.objective: {stream.objective!r} is not configured; objective.terms has "
                f"{', '.join(config.objective.terms)}"
            )
        if (
            objective.bounded_by_native_window
            and stream.length > window
            and not config.objective.allow_beyond_native
        ):
            raise ConfigError(
                f"{path}.length: {stream.length} tokens exceed the native window of "
                f"{config.model.name}, {window}, beyond which the teacher is not a guide; give at "
                f"most {window}, or set objective.allow_beyond_native=true"
            )
        if stream.length > config.rope.target_length:
            raise ConfigError(
                f"{path}.length: {stream.length} tokens exceed rope.target_length="
                f"{config.rope.target_length}"
            )
        try:
            objective.needs(facts)
        except ValueError as error:
            raise ConfigError(f"objective.terms.{stream.objective}.{error}") from error


def kept_of_teacher(config: RunConfig) -> Keep:
    """What the teacher leaves behind for each layer."""
    keep = config.engine.teacher.keep
    if keep != "auto":
        return keep
    known = config.model.family in PLAIN_LAYER_FAMILIES
    return "layer_inputs" if known and config.engine.student.gradient_checkpointing else "qkv"


def _check_teacher(config: RunConfig, facts: ModelFacts) -> None:
    teacher, family = config.engine.teacher, config.model.family
    known = ", ".join(PLAIN_LAYER_FAMILIES)
    if teacher.keep == "layer_inputs" and family not in PLAIN_LAYER_FAMILIES:
        raise ConfigError(
            f"engine.teacher.keep: layer_inputs is offered for families {known}, not {family!r}; "
            "use qkv"
        )
    if not teacher.share_base:
        return
    if family not in PLAIN_LAYER_FAMILIES:
        raise ConfigError(
            f"engine.teacher.share_base: true is offered for families {known}, not {family!r}; "
            "use false"
        )
    for index, (name, stage) in enumerate(config.recipe.stages.items()):
        if not any(o.needs(facts).teacher for o in _objectives(config, stage).values()):
            continue
        if not isinstance(stage.parameters, LoraParameters):
            raise ConfigError(
                f"engine.teacher.share_base: true, but recipe.stages.{name} trains base weights "
                "(parameters.type=full), which are then no teacher; use false, or train adapters "
                f"with parameters@recipe.stages.{name}.parameters=lora"
            )
        if index:
            raise ConfigError(
                f"engine.teacher.share_base: true, but recipe.stages.{name} starts from what the "
                "stage before it has trained, which is not the teacher; use false"
            )


def _stage_plan(
    config: RunConfig, name: str, shape: ModelShape, facts: ModelFacts, world_size: int
) -> StagePlan:
    stage = config.recipe.stages[name]
    try:
        schedule = StageSchedule(stage)
    except ValueError as error:
        raise ConfigError(f"recipe.stages.{name}.{error}") from error
    micro_batch = config.engine.student.micro_batch
    accumulation = schedule.accumulation(world_size=world_size, micro_batch=micro_batch)
    turns = [
        micro
        for rank in range(world_size)
        for micro in schedule.micro_steps(
            0, rank=rank, world_size=world_size, micro_batch=micro_batch
        )
    ]
    adapters = _adapter_parameters(stage, shape, name)
    return StagePlan(
        name=name,
        tokens=stage.tokens,
        tokens_per_step=stage.tokens_per_step,
        steps=schedule.steps,
        accumulation=accumulation,
        busy=sum(1 for micro in turns if micro.pieces) / len(turns),
        stream_tokens=schedule.tokens_read(),
        trainable_parameters=shape.parameters if adapters is None else adapters,
        total_parameters=shape.parameters + (adapters or 0),
        memory=_memory(config, stage, shape, facts, adapters, world_size),
        flops=_flops(config, stage, schedule, shape, facts, adapters),
    )


def _adapter_parameters(stage: StageConfig, shape: ModelShape, name: str) -> int | None:
    """Weights of the LoRA adapters, None where all parameters are trained."""
    if not isinstance(stage.parameters, LoraParameters):
        return None
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sides = {
        "q_proj": shape.hidden + queries,
        "k_proj": shape.hidden + keys,
        "v_proj": shape.hidden + keys,
        "o_proj": queries + shape.hidden,
        "gate_proj": shape.hidden + shape.intermediate,
        "up_proj": shape.hidden + shape.intermediate,
        "down_proj": shape.intermediate + shape.hidden,
    }
    unknown = [p for p in stage.parameters.projections if p not in sides]
    if unknown:
        raise ConfigError(
            f"recipe.stages.{name}.parameters.projections: {unknown} unknown; allowed: "
            f"{', '.join(sides)}"
        )
    rank = stage.parameters.rank
    return shape.layers * rank * sum(sides[p] for p in stage.parameters.projections)


def _objectives(config: RunConfig, stage: StageConfig) -> dict[str, Objective]:
    return {s.objective: config.objective.terms[s.objective] for s in stage.streams.values()}


def _memory(
    config: RunConfig,
    stage: StageConfig,
    shape: ModelShape,
    facts: ModelFacts,
    adapters: int | None,
    world_size: int,
) -> dict[str, float]:
    width = _BYTES[config.engine.dtype]
    student, teacher = config.engine.student, config.engine.teacher
    trainable = shape.parameters if adapters is None else adapters
    total = shape.parameters + (adapters or 0)
    needs = [o.needs(facts) for o in _objectives(config, stage).values()]
    tokens = max(s.length for s in stage.streams.values()) * student.micro_batch

    parts: dict[str, float] = {}
    if any(n.teacher for n in needs) and not teacher.share_base:
        shared = world_size if teacher.zero_stage == 3 else 1
        parts["teacher weights"] = (
            0 if teacher.offload_parameters else shape.parameters * width / shared
        )
    sharded = {stage: world_size if student.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    parts["student weights"] = 0 if student.offload_parameters else total * width / sharded[3]
    parts["gradients"] = trainable * width / sharded[2]
    # AdamW: two float32 moments, and a float32 master copy of lower-precision weights.
    state = trainable * (8 if width == 4 else 12) / sharded[1]
    parts["optimizer"] = 0 if student.offload_optimizer else state
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer = tokens * width * (6 * shape.hidden + 3 * shape.intermediate + 2 * qkv)
    if student.gradient_checkpointing:
        parts["activations"] = shape.layers * tokens * shape.hidden * width + layer
    else:
        parts["activations"] = shape.layers * layer
    captured = max((len(n.qkv_layers) for n in needs if n.teacher), default=0)
    if captured:
        kept = shape.hidden if kept_of_teacher(config) == "layer_inputs" else qkv
        parts["teacher's layers"] = captured * tokens * kept * width
    if any(n.head for n in needs):
        parts["logits"] = 3 * 4 * min(tokens, 2048) * shape.vocabulary
    return parts


def _flops(
    config: RunConfig,
    stage: StageConfig,
    schedule: StageSchedule,
    shape: ModelShape,
    facts: ModelFacts,
    adapters: int | None,
) -> float:
    """Forward and backward of student and teacher; a multiplication and an addition are two."""
    objectives = _objectives(config, stage)
    total = 0.0
    for name, tokens in schedule.tokens_read().items():
        stream = stage.streams[name]
        objective = objectives[stream.objective]
        needs = objective.needs(facts)
        blocks = tokens / stream.length
        weights = shape.layers * (shape.layer_parameters - 2 * shape.hidden)
        products = 2.0 * weights * stream.length
        # Causal attention: two products over half the square forward, five backward.
        unit = float(shape.layers * shape.heads * shape.head_dim) * stream.length**2
        head = 2.0 * shape.embedding_parameters * stream.length if needs.head else 0.0
        lora = 0.0 if adapters is None else 2.0 * adapters * stream.length
        forward = products + 2 * unit + head + lora
        # Frozen weights need the gradient of their inputs only.
        backward = products * (2 if adapters is None else 1) + 5 * unit + 2 * head + 2 * lora
        again = products + 2 * unit + lora if config.engine.student.gradient_checkpointing else 0.0
        teacher = products + 2 * unit if needs.teacher else 0.0
        extra = objective.flops(stream.length, facts)
        total += blocks * (forward + backward + again + teacher + extra)
    return total


def show(plan: Plan, config: RunConfig, console: Console) -> None:
    """Print the plan; output that is no terminal is wide enough for every figure."""
    if not console.is_terminal:
        console.width = max(console.width, 110)
    console.print(
        f"[bold]{config.experiment}[/bold]: {plan.method} on {plan.model}, "
        f"{config.rope.type} RoPE scaling {plan.native_window:,} -> {plan.target_length:,} tokens "
        f"(factor {plan.factor:g}), {config.engine.dtype}, seed {config.seed}"
    )
    table = Table(title="Stages", title_justify="left")
    for column in (
        "stage",
        "tokens",
        "steps",
        "tokens/step",
        "micro-steps x ranks",
        "trained",
        "of",
    ):
        table.add_column(column, justify="left" if column == "stage" else "right")
    table.add_column("PFLOP", justify="right")
    for stage in plan.stages:
        table.add_row(
            stage.name,
            f"{stage.tokens:,}",
            f"{stage.steps:,}",
            f"{stage.tokens_per_step:,}",
            f"{stage.accumulation} x {plan.world_size}",
            f"{stage.trainable_parameters:,}",
            f"{stage.total_parameters:,}",
            f"{stage.flops / 1e15:,.3g}",
        )
    console.print(table)
    tokens = " + ".join(f"{stage.tokens:,}" for stage in plan.stages)
    steps = " + ".join(f"{stage.steps:,}" for stage in plan.stages)
    total = f" = {plan.tokens:,}" if len(plan.stages) > 1 else ""
    console.print(f"tokens: {tokens}{total} in {steps} optimizer steps")
    for stage in plan.stages:
        streams = ", ".join(f"{name} {count:,}" for name, count in stage.stream_tokens.items())
        console.print(f"expected tokens of {stage.name} by stream: {streams}")
        if stage.busy < 1:
            console.print(
                f"[yellow]{stage.name}: a step has too few blocks for {plan.world_size} ranks; "
                f"{1 - stage.busy:.0%} of their work repeats others' blocks at weight 0[/yellow]"
            )
    memory = Table(title="Memory a rank, estimated (GiB)", title_justify="left")
    memory.add_column("part")
    parts = list(dict.fromkeys(part for stage in plan.stages for part in stage.memory))
    for stage in plan.stages:
        memory.add_column(stage.name, justify="right")
    for part in parts:
        memory.add_row(part, *(_gib(stage.memory.get(part)) for stage in plan.stages))
    memory.add_row("[bold]all[/bold]", *(_gib(sum(stage.memory.values())) for stage in plan.stages))
    console.print(memory)


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"
