"""What a run will cost, worked out from its config before anything is loaded.

Tokens and steps are exact. Memory and time are estimates from shapes (src/planning/cost.py). What
a setting leaves to the plan (`auto`) is decided here, and a run that does not fit its device is
refused with settings that would make it fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from src.models.adapters import QKV, FullParameters, LoraParameters, QkvParameters
from src.models.config import ModelShape, native_rope
from src.models.facts import ModelFacts
from src.models.families import PLAIN_LAYER_FAMILIES
from src.models.hf_config import planned_facts, projection_sizes, resolved_shape, scaled_config
from src.models.rope import NativeRope
from src.objectives.base import Demanding, Spreadable
from src.passes.teacher import Keep
from src.planning import cost
from src.planning.cost import Setting
from src.planning.devices import ACCELERATORS, DeviceFacts, device_facts, uses_cuda
from src.settings.config import ConfigError, RunConfig
from src.training import positions
from src.training.schedule import StageConfig, StageSchedule, StreamConfig

# Memory that a plan counts on: the rest goes to the driver's context, NCCL, and to gaps between
# tensors. Of a machine without a GPU it goes to the system and to other ranks' libraries.
USABLE = 0.93


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        accumulation: micro-steps a rank adds up in a full step.
        busy: share of the ranks' micro-steps that carry a block of their own.
        stream_tokens: tokens by stream; they add up to `tokens`.
        trainable_parameters, total_parameters: of the student.
        memory: estimated bytes a rank at the peak, by part.
        flops: floating-point operations of the whole stage, teacher's included.
        seconds_per_step: estimated, of a full step; None for a device of unknown speed.
        checkpointing: layers run again in the backward pass.
        keep: what the teacher leaves behind for each layer.
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
    """A run: its stages, how many ranks share the work, and the device of each."""

    model: str
    method: str
    factor: float
    native_window: int
    target_length: int
    world_size: int
    device: DeviceFacts
    stages: tuple[StagePlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every stage's estimate is within what the device has."""
        return all(_fits(stage.peak, self.device) for stage in self.stages)

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
    def seconds(self) -> float | None:
        """Estimated training time; None for a device of unknown speed."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    @property
    def peak(self) -> float:
        """Estimated bytes a rank, of the stage that needs most."""
        return max(stage.peak for stage in self.stages)


def make(config: RunConfig, *, world_size: int, device: DeviceFacts | None = None) -> Plan:
    """Work the plan out, and refuse settings that contradict each other.

    Args:
        config: the run.
        world_size: ranks.
        device: of each rank; by default what `plan_for` says.

    Raises:
        ConfigError: a stream names an objective that is not configured; a distillation block
            exceeds the native window; an objective's or a schedule's settings don't fit.
    """
    shape = resolved_shape(config.model)
    facts = planned_facts(config.model)
    rope = native_rope(config.model, shape)
    try:
        # Tables of another length, for example.
        config.rope.rope_parameters(rope)
        if config.model.shape is None:
            # Its files are there to be asked; what is listed has been tried.
            scaled_config(config.model, config.rope)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in config.recipe.stages:
        _check_streams(config, name, facts)
    _check_teacher(config, facts)
    if config.engine.sequence_parallel > 1:
        _check_sharing(config, facts, rope, world_size)
    device = device or _device(config)
    return Plan(
        model=config.model.name,
        method=config.recipe.name,
        factor=config.rope.resolved_factor(config.model.native_window),
        native_window=config.model.native_window,
        target_length=config.rope.target_length,
        world_size=world_size,
        device=device,
        stages=tuple(
            _stage_plan(config, name, shape, facts, world_size, device)
            for name in config.recipe.stages
        ),
    )


def _device(config: RunConfig) -> DeviceFacts:
    if config.plan_for != "this_machine":
        return ACCELERATORS[config.plan_for]
    return device_facts(config.engine.device, local_ranks=config.launch.nproc)


def _fits(size: float, device: DeviceFacts) -> bool:
    return size <= USABLE * device.memory


def _check_streams(config: RunConfig, stage: str, facts: ModelFacts) -> None:
    window = config.model.native_window
    objectives = config.objectives(stage)
    for name, stream in config.recipe.stages[stage].streams.items():
        path = f"recipe.stages.{stage}.streams.{name}"
        objective = objectives[name]
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
            positions.check(stream.positions, stream.length, config.rope.target_length)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
        _check_terms(config, stream, facts)


def _check_terms(config: RunConfig, stream: StreamConfig, facts: ModelFacts) -> None:
    cuda = config.plan_for != "this_machine" or uses_cuda(config.engine.device)
    for name in stream.terms:
        try:
            objective = config.objective.terms[name]
            objective.needs(facts)
            if isinstance(objective, Demanding):
                objective.check(stream.length, cuda=cuda)
        except ValueError as error:
            raise ConfigError(f"objective.terms.{name}.{error}") from error


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
        if not any(o.needs(facts).teacher for o in config.objectives(name).values()):
            continue
        if not isinstance(stage.parameters, LoraParameters):
            raise ConfigError(
                f"engine.teacher.share_base: true, but recipe.stages.{name} trains base weights "
                f"(parameters.type={stage.parameters.type}), which are then no teacher; use false, "
                "or train adapters "
                f"with parameters@recipe.stages.{name}.parameters=lora"
            )
        if index:
            raise ConfigError(
                f"engine.teacher.share_base: true, but recipe.stages.{name} starts from what the "
                "stage before it has trained, which is not the teacher; use false"
            )


def _check_sharing(config: RunConfig, facts: ModelFacts, rope: NativeRope, world_size: int) -> None:
    """Refuse what cannot be done on blocks that ranks share (src/training/sequence.py)."""
    parts = config.engine.sequence_parallel
    given = f"engine.sequence_parallel={parts}"
    if world_size % parts:
        raise ConfigError(
            f"{given}: as many ranks share each block, and {world_size} cannot be put into such "
            f"groups; start {parts} or a multiple of it (launch.nproc={parts}), or leave it at 1"
        )
    heads, keys = facts.heads, facts.kv_heads
    if not _shareable(facts, parts):
        allowed = [n for n in range(2, heads + 1) if _shareable(facts, n)]
        raise ConfigError(
            f"{given}: the {heads} heads of {config.model.name}, with keys and values in {keys}, "
            f"cannot be dealt out to {parts} ranks evenly; give one of {allowed}, or 1"
        )
    if config.model.attention != "sdpa":
        raise ConfigError(
            f"model.attention: {config.model.attention} needs a mask of all tokens by all tokens, "
            f"which {given} has no place for; use sdpa"
        )
    kind = config.rope.rope_parameters(rope)["rope_type"]
    if kind in ("dynamic", "longrope"):
        raise ConfigError(
            f"rope.type: {config.rope.type} depends on the length of the sequence at hand, which "
            f"no rank sees with {given}; use another scaling, or engine.sequence_parallel=1"
        )
    for stage in config.recipe.stages:
        _check_shared_streams(config, stage, facts)


def _shareable(facts: ModelFacts, parts: int) -> bool:
    """Whether each of so many ranks can have as many heads, with the keys and values they use."""
    keys = facts.kv_heads
    return facts.heads % parts == 0 and (keys % parts == 0 or parts % keys == 0)


def _check_shared_streams(config: RunConfig, stage: str, facts: ModelFacts) -> None:
    parts = config.engine.sequence_parallel
    given = f"engine.sequence_parallel={parts}"
    windows = [window for window in facts.windows if window is not None]
    for name, stream in config.recipe.stages[stage].streams.items():
        path = f"recipe.stages.{stage}.streams.{name}"
        if stream.length % parts:
            raise ConfigError(
                f"{path}.length: {stream.length} tokens cannot be dealt out evenly by {given}; "
                f"give a multiple of {parts}"
            )
        if windows and min(windows) < stream.length:
            raise ConfigError(
                f"{path}.length: {stream.length} tokens are more than the sliding window of "
                f"{config.model.name}, {min(windows)}, which {given} does not offer; give at most "
                f"{min(windows)}, or engine.sequence_parallel=1"
            )
        for term in stream.terms:
            objective = config.objective.terms[term]
            if not isinstance(objective, Spreadable):
                raise ConfigError(
                    f"{path}.objective: {term} does not say how it is computed on parts of blocks, "
                    f"as {given} asks for; use engine.sequence_parallel=1"
                )
            if (setting := objective.needs_whole_blocks()) is not None:
                raise ConfigError(
                    f"objective.terms.{term}.{setting}: it needs whole blocks on one rank, and "
                    f"{given} spreads them; leave the setting out, or use "
                    "engine.sequence_parallel=1"
                )


def _check_last_block(config: RunConfig, name: str, schedule: StageSchedule) -> None:
    """Refuse a stage whose last block is cut where ranks that share it cannot."""
    parts, tokens = config.engine.sequence_parallel, config.recipe.stages[name].tokens
    for piece in schedule.pieces(schedule.steps - 1):
        if rest := piece.tokens % parts:
            raise ConfigError(
                f"recipe.stages.{name}.tokens={tokens} ends on a block of {piece.tokens} tokens, "
                f"which cannot be dealt out evenly by engine.sequence_parallel={parts}: give "
                f"{tokens - rest} or {tokens - rest + parts}"
            )


def _stage_plan(
    config: RunConfig,
    name: str,
    shape: ModelShape,
    facts: ModelFacts,
    world_size: int,
    device: DeviceFacts,
) -> StagePlan:
    stage = config.recipe.stages[name]
    try:
        schedule = StageSchedule(stage)
    except ValueError as error:
        raise ConfigError(f"recipe.stages.{name}.{error}") from error
    _check_last_block(config, name, schedule)
    micro_batch = config.engine.student.micro_batch
    readers = world_size // config.engine.sequence_parallel
    accumulation = schedule.accumulation(world_size=readers, micro_batch=micro_batch)
    turns = [
        micro
        for rank in range(readers)
        for micro in schedule.micro_steps(0, rank=rank, world_size=readers, micro_batch=micro_batch)
    ]
    adapters = _adapter_parameters(config, shape, name)
    setting = _decided(config, stage, shape, facts, adapters, world_size, device)
    return StagePlan(
        name=name,
        tokens=stage.tokens,
        tokens_per_step=stage.step_tokens,
        steps=schedule.steps,
        accumulation=accumulation,
        busy=sum(1 for micro in turns if micro.pieces) / len(turns),
        stream_tokens=schedule.tokens_read(),
        trainable_parameters=setting.trainable,
        total_parameters=setting.total,
        memory=cost.memory(setting),
        flops=cost.work(setting, schedule).flops,
        seconds_per_step=cost.step_seconds(setting, schedule, device),
        checkpointing=setting.checkpointing,
        keep=setting.keep,
    )


def _decided(
    config: RunConfig,
    stage: StageConfig,
    shape: ModelShape,
    facts: ModelFacts,
    adapters: int | None,
    world_size: int,
    device: DeviceFacts,
) -> Setting:
    """The stage's setting, with what is `auto` decided: checkpointing where memory asks for it.

    So is what a teacher keeps; but one whose own weights are divided keeps q, k and v where they
    fit, as parts of its layers would be fetched out of turn for making them again.
    """
    engine = config.engine
    divided = engine.teacher.zero_stage == 3 and not engine.teacher.share_base

    def setting(checkpointing: bool) -> Setting:
        asked = engine.teacher.keep
        plain = Setting(config, stage, shape, facts, adapters, world_size, checkpointing, "qkv")
        small = replace(plain, keep="layer_inputs")
        if asked != "auto":
            return plain if asked == "qkv" else small
        wanted = any(o.needs(facts).qkv_layers for o in plain.objectives.values())
        if not (wanted and checkpointing) or config.model.family not in PLAIN_LAYER_FAMILIES:
            return plain
        if divided and _fits(sum(cost.memory(plain).values()), device):
            return plain
        return small

    asked = config.engine.student.gradient_checkpointing
    if asked != "auto":
        return setting(asked)
    stored = setting(False)
    # A compiled layer chooses itself what it keeps.
    if config.engine.compile or _fits(sum(cost.memory(stored).values()), device):
        return stored
    return setting(True)


def check_fits(made: Plan, config: RunConfig) -> None:
    """Refuse a run that its device cannot hold, unless told to try.

    Raises:
        ConfigError: with the settings that would make it fit.
    """
    if not made.fits and not config.allow_oversubscribe:
        raise ConfigError(misfit(made, config))


def misfit(made: Plan, config: RunConfig) -> str:
    """Why a run does not fit, and which settings would make it."""
    worst = max(made.stages, key=lambda stage: stage.peak)
    device = made.device
    why = (
        f"stage {worst.name} needs an estimated {_gib(worst.peak)} GiB a rank, and {device.name} "
        f"has {_gib(USABLE * device.memory)} GiB for it"
    )
    taken: dict[str, object] = {}
    for settings in _savings(config, taken, on_cpu=device.is_cpu):
        tried = _replanned(config, taken | settings, made)
        # What changes nothing by itself may beside another setting.
        if tried is not None and _excess(tried) <= _excess(made):
            taken |= settings
            made = tried
        if made.fits:
            break
    # Something taken early may have become needless, the dearest first.
    for key in reversed(list(taken)):
        fewer = {k: v for k, v in taken.items() if k != key}
        tried = _replanned(config, fewer, made)
        if tried is not None and _excess(tried) <= _excess(made):
            taken, made = fewer, tried
    if made.fits:
        return f"{why}; it fits with {_typed(taken)} (or try with allow_oversubscribe=true)"
    more = f" with {_typed(taken)} it would need {_gib(made.peak)} GiB;" if taken else ""
    return (
        f"{why};{more} use more ranks with engine=zero3, shorter blocks or a smaller model (or try "
        "with allow_oversubscribe=true)"
    )


def _excess(made: Plan) -> float:
    """Bytes a rank that do not fit, over all stages."""
    usable = USABLE * made.device.memory
    return sum(max(0.0, stage.peak - usable) for stage in made.stages)


def _replanned(config: RunConfig, settings: Mapping[str, object], made: Plan) -> Plan | None:
    """The plan with other engine settings; None where they do not go together."""
    parts: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}, "": {}}
    for key, value in settings.items():
        part, _, name = key.rpartition(".")
        parts[part][name] = value
    try:
        student = replace(config.engine.student, **parts["student"])
        teacher = replace(config.engine.teacher, **parts["teacher"])
        engine = replace(config.engine, student=student, teacher=teacher, **parts[""])
        changed = replace(config, engine=engine)
        return make(changed, world_size=made.world_size, device=made.device)
    except ValueError:
        return None


def _typed(settings: Mapping[str, object]) -> str:
    """Settings as they are typed."""
    return " ".join(f"engine.{key}={str(value).lower()}" for key, value in settings.items())


def _savings(
    config: RunConfig, taken: Mapping[str, object], *, on_cpu: bool
) -> Iterator[dict[str, object]]:
    """Settings below `engine` that take less memory, the cheapest in time first.

    `taken` are those of them that have been taken so far.
    """
    if config.engine.compile:
        yield {"compile": False}
    if config.engine.student.micro_batch > 1:
        yield {"student.micro_batch": 1}
    yield {"teacher.share_base": True}
    yield {"student.gradient_checkpointing": True}
    yield {"teacher.keep": "layer_inputs"}
    yield {"student.accumulate_in": "bfloat16"}
    # A stage takes the place of the one before it.
    for stage in (1, 2, 3):
        yield {"student.zero_stage": stage}
    yield {"teacher.zero_stage": 3}
    for parts in (2, 4, 8):
        yield {"sequence_parallel": parts}
    if on_cpu:
        return
    stage: Any = taken.get("student.zero_stage", config.engine.student.zero_stage)
    yield {"student.zero_stage": max(1, stage), "student.offload_optimizer": True}
    yield {"teacher.zero_stage": 3, "teacher.offload_parameters": True}
    yield {"student.zero_stage": 3, "student.offload_parameters": True}


def _adapter_parameters(config: RunConfig, shape: ModelShape, name: str) -> int | None:
    """Weights of a stage's LoRA adapters, None where there are none.

    Raises:
        ConfigError: the model lacks projections that are trained.
    """
    parameters, model = config.recipe.stages[name].parameters, config.model
    if isinstance(parameters, FullParameters):
        return None
    sizes = projection_sizes(model, shape)
    allowed = ", ".join(sizes)
    path = f"recipe.stages.{name}.parameters"
    if isinstance(parameters, QkvParameters):
        if missing := [p for p in QKV if p not in sizes]:
            raise ConfigError(
                f"{path}.type: qkv trains {', '.join(missing)}, which {model.name} lacks; use "
                f"lora, with projections among {allowed}, or full"
            )
        return None
    unknown = [p for p in parameters.projections if p not in sizes]
    if unknown:
        raise ConfigError(f"{path}.projections: {unknown} unknown; allowed: {allowed}")
    chosen = [sizes[p] for p in parameters.projections]
    # DoRA has a magnitude for each output besides.
    magnitudes = sum(out for _, out in chosen) if parameters.use_dora else 0
    return shape.layers * (parameters.rank * sum(map(sum, chosen)) + magnitudes)


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
    table.add_column("s/step", justify="right")
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
            _seconds(stage.seconds_per_step),
        )
    console.print(table)
    tokens = " + ".join(f"{stage.tokens:,}" for stage in plan.stages)
    steps = " + ".join(f"{stage.steps:,}" for stage in plan.stages)
    total = f" = {plan.tokens:,}" if len(plan.stages) > 1 else ""
    console.print(f"tokens: {tokens}{total} in {steps} optimizer steps")
    if config.budget is not None:
        console.print(f"budget: {config.budget} = {plan.tokens:,} tokens over all stages")
    for stage in plan.stages:
        streams = ", ".join(f"{name} {count:,}" for name, count in stage.stream_tokens.items())
        console.print(f"expected tokens of {stage.name} by stream: {streams}")
        if stage.busy < 1:
            console.print(
                f"[yellow]{stage.name}: a step has too few blocks for {plan.world_size} ranks; "
                f"{1 - stage.busy:.0%} of their work repeats others' blocks at weight 0[/yellow]"
            )
    if (parts := config.engine.sequence_parallel) > 1:
        readers = plan.world_size // parts
        console.print(f"each block is shared by {parts} ranks; {readers} such groups read blocks")
    for note in _unscaled(config):
        console.print(f"[yellow]{note}[/yellow]")
    for stage in plan.stages:
        again = "on: layers run again in the backward pass" if stage.checkpointing else "off"
        console.print(f"{stage.name}: gradient checkpointing {again}")
    memory = Table(
        title=f"Memory a rank at the peak, estimated (GiB), on {plan.device.name}",
        title_justify="left",
    )
    memory.add_column("part")
    parts = list(dict.fromkeys(part for stage in plan.stages for part in stage.memory))
    for stage in plan.stages:
        memory.add_column(stage.name, justify="right")
    for part in parts:
        memory.add_row(part, *(_gib(stage.memory.get(part)) for stage in plan.stages))
    memory.add_row("[bold]all[/bold]", *(_gib(stage.peak) for stage in plan.stages))
    console.print(memory)
    if plan.seconds is not None:
        hours = plan.seconds / 3600
        student, teacher = config.engine.student, config.engine.teacher
        moved = student.offload_optimizer or student.offload_parameters
        moved = moved or teacher.offload_parameters
        uncounted = "; what offloading takes is not counted" if moved else ""
        console.print(f"time: about {hours:.2g} hours of training on {plan.device.name}{uncounted}")
    if not plan.fits:
        console.print(f"[red]does not fit: {misfit(plan, config)}[/red]")


def _unscaled(config: RunConfig) -> Iterator[str]:
    """Streams whose blocks the student rotates as its teacher does, so that they teach nothing."""
    rope = native_rope(config.model, resolved_shape(config.model))
    for name, stage in config.recipe.stages.items():
        for stream_name, objective in config.objectives(name).items():
            stream = stage.streams[stream_name]
            # Skipped positions differ from the teacher's whatever the scaling.
            distilled = objective.bounded_by_native_window and stream.positions == "contiguous"
            if distilled and config.rope.is_native_at(rope, stream.length):
                yield (
                    f"{name}: at {stream.length:,} tokens {config.rope.type} scaling leaves RoPE "
                    f"as it is, so a student that starts from its teacher's weights has nothing to "
                    f"learn from it in stream {stream_name}"
                )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"
