"""Refusals before anything is loaded: settings that contradict each other, the model or ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from src.models.adapters import FUSED_QKV, QKV, LoraParameters, QkvParameters
from src.models.exporting.gguf import check_gguf
from src.models.facts import ModelFacts
from src.models.families import PLAIN_LAYER_FAMILIES, family_of
from src.models.hf_config import resolved_shape, scaled_config
from src.models.merging import MergeConfig
from src.models.rope import NativeRope
from src.models.rope.base import FactorScaling
from src.planning.cost import Setting
from src.planning.decisions import why_no_graphs
from src.planning.devices import DeviceFacts, check_processes, gpus, uses_cuda
from src.run_folder import check_writable
from src.settings.config import LaunchConfig, RunConfig
from src.settings.strict import ConfigError, refused_at
from src.tracking import check_login
from src.training import positions
from src.training.repeats import Repeats
from src.training.schedule import StageSchedule, StreamConfig

# The command to type on every machine, or once if the launcher reaches the others.
_LAUNCHERS = {
    "torchrun": "torchrun --nnodes={nodes} --nproc-per-node={nproc} --rdzv-backend=c10d "
    "--rdzv-endpoint=HOST:29400 -m src.train ...",
    "deepspeed": "deepspeed --hostfile=HOSTS --num_nodes={nodes} --num_gpus={nproc} "
    "--module src.train ...",
    "slurm": "srun --nodes={nodes} --ntasks-per-node={nproc} python -m src.train ...",
}


def check_launch(asked: LaunchConfig, started: int | None, *, dry_run: bool) -> None:
    """Refuse a run with other ranks than its settings say; `started` is None without a launcher.

    Raises:
        ConfigError: the launcher of the settings has started no ranks, or another number.
    """
    if started is not None and asked.by == "local" and asked.nproc > 1:
        raise ConfigError(
            f"launch.nproc: {asked.nproc} ranks are asked for, but a launcher has started "
            f"{started} already; leave launch.nproc at 1"
        )
    if asked.by == "local":
        return
    command = _LAUNCHERS[asked.by].format(nodes=asked.nodes, nproc=asked.nproc)
    if started is None and not dry_run:
        raise ConfigError(f"launch.by: {asked.by} has not started this process; type {command}")
    if started not in (None, asked.ranks):
        raise ConfigError(
            f"launch: {asked.nodes} x {asked.nproc} ranks are asked for and {started} have been "
            f"started; set launch.nodes and launch.nproc, or type {command}"
        )


def check_machine(config: RunConfig) -> None:
    """Refuse a run that this machine cannot begin: devices, the run's folder, a login.

    Raises:
        ConfigError, TrackingError: with the key, what is allowed and the remedy.
    """
    if config.run_dir == "":
        raise ConfigError("run_dir: an empty name; name a folder, or leave it out")
    path = Path(config.run_dir or Path("outputs") / config.experiment)
    check_writable(path, f"run_dir={config.run_dir}" if config.run_dir is not None else str(path))
    check_login(config.tracking)
    if config.plan_for != "this_machine":
        return
    if config.launch.by == "local":
        check_processes(config.launch.nproc, "launch.nproc")
    if config.engine.device == "cuda" and not uses_cuda("cuda"):
        raise ConfigError(
            "engine.device: cuda is asked for, but the driver shows no GPU; use cpu or auto"
        )
    if uses_cuda(config.engine.device) and config.launch.nproc > len(gpus()):
        raise ConfigError(
            f"launch.nproc: {config.launch.nproc} ranks need as many GPUs, and this machine has "
            f"{len(gpus())}"
        )


def check(config: RunConfig, facts: ModelFacts, rope: NativeRope) -> None:
    """Refuse a run whose settings do not go together, whatever its engines.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    with refused_at():
        # A table of factors may have another length than the model's heads ask for.
        config.rope.exported(rope)
        if config.model.shape is None:
            # A model without a stated shape has files to ask; listed models have been tried.
            scaled_config(config.model, config.rope)
    _check_factor(config)
    for stage in config.recipe.training:
        _check_streams(config, stage, facts)
    for name, merge in config.recipe.stages.items():
        if isinstance(merge, MergeConfig):
            with refused_at(f"recipe.stages.{name}."):
                merge.shares(facts.layers)
    if config.export.gguf:
        model_type = family_of(config.model.family).model_type
        with refused_at():
            check_gguf(config.model, resolved_shape(config.model), model_type, config.rope)


def check_engine(config: RunConfig, facts: ModelFacts, rope: NativeRope, world_size: int) -> None:
    """Refuse settled engines that do not go with the rest of a run.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    if config.engine.sequence_parallel > 1:
        _check_sharing(config, facts, rope, world_size)
    for stage in config.recipe.training:
        _check_schedule(config, stage)
    _check_teacher(config, facts)
    _check_looks(config)


def _check_factor(config: RunConfig) -> None:
    """Refuse a factor that does not extend the native window to the target."""
    window, target = config.model.native_window, config.rope.target_length
    factor = config.rope.factor if isinstance(config.rope, FactorScaling) else None
    if factor is not None and factor * window < target * (1 - 1e-6):
        raise ConfigError(
            f"rope.factor: {factor:g} extends {window} tokens to {factor * window:.0f}, below "
            f"rope.target_length={target}; give at least {target / window:g}, or leave it out"
        )


def _check_streams(config: RunConfig, stage: str, facts: ModelFacts) -> None:
    window = config.model.native_window
    objectives = config.objectives(stage)
    for name, stream in config.recipe.training[stage].streams.items():
        path = f"recipe.stages.{stage}.streams.{name}"
        _check_terms(config, stream, facts)
        with refused_at(f"{path}."):
            needs = objectives[name].needs(facts)
        read = min(stream.length, needs.teacher_chunk or stream.length)
        if needs.teacher and read > window and not config.objective.allow_beyond_native:
            raise ConfigError(
                f"{path}.length: {read} tokens exceed the native window of "
                f"{config.model.name}, {window}, for which the teacher was not trained; give at "
                f"most {window}, or set objective.allow_beyond_native=true"
            )
        if stream.length > config.rope.target_length:
            raise ConfigError(
                f"{path}.length: {stream.length} tokens exceed rope.target_length="
                f"{config.rope.target_length}"
            )
        with refused_at(f"{path}: "):
            positions.check(stream.positions, stream.length, config.rope.target_length)
        if stream.repeats is not None:
            _check_repeats(config, stream.repeats, stream.length, f"{path}.repeats")


def _check_repeats(config: RunConfig, repeats: Repeats, length: int, path: str) -> None:
    if _answers_only(config):
        raise ConfigError(
            f"{path}: repeats move text between questions and answers, and answers_only=true of a "
            "source tells them apart; use repeats=null, or answers_only=false"
        )
    with refused_at(f"{path}."):
        repeats.check(length)


# Warm-ups of recipes; a run of fewer steps is a quick look.
_SHORT_WARMUP = 100


def _check_schedule(config: RunConfig, name: str) -> None:
    """Refuse a stage that never reaches its learning rate, or one of its streams."""
    stage, schedule = config.recipe.training[name], checked_schedule(config, name)
    path = f"recipe.stages.{name}"
    if stage.warmup_steps > max(schedule.steps, _SHORT_WARMUP):
        raise ConfigError(
            f"{path}.warmup_steps: {stage.warmup_steps} is more than the stage's {schedule.steps} "
            f"steps; give at most {schedule.steps}"
        )
    unread = [stream for stream, tokens in schedule.tokens_read().items() if tokens == 0]
    if unread:
        turn = sum(s.slot_tokens * s.share for s in stage.streams.values())
        raise ConfigError(
            f"{path}.tokens={stage.tokens} leaves none for {' and '.join(unread)}: one turn of the "
            f"mixture is {turn} tokens; give the stage as many, or a larger budget"
        )


def check_kernels(setting: Setting, device: DeviceFacts) -> None:
    """Refuse kernels that the settings ask for by name and that cannot run.

    Raises:
        ConfigError: with what stands against them.
    """
    engine, family = setting.config.engine, family_of(setting.config.model.family)
    remedy = "use auto or false"
    if engine.cuda_graphs is True:
        against = "this is a CPU" if device.is_cpu else None
        if against is None and not engine.compile:  # compiled layers can be recorded on request
            against = why_no_graphs(setting)
        if against:
            raise ConfigError(f"engine.cuda_graphs: true, but {against}; {remedy}")
    if engine.fused_kernels is True:
        against = "this is a CPU" if device.is_cpu else None
        if not family.llama_operators:
            against = f"models of family {family.name} have other formulas than LLaMA's"
        if against:
            raise ConfigError(f"engine.fused_kernels: true, but {against}; {remedy}")


def _answers_only(config: RunConfig) -> bool:
    """Whether next-token losses count the answers of chats only."""
    return any(getattr(source, "answers_only", False) for source in config.data.sources.values())


def _check_terms(config: RunConfig, stream: StreamConfig, facts: ModelFacts) -> None:
    cuda = config.plan_for != "this_machine" or uses_cuda(config.engine.device)
    for name in stream.terms:
        with refused_at(f"objective.terms.{name}."):
            objective = config.objective.terms[name]
            objective.needs(facts)
            objective.check(stream.length, cuda=cuda)
            predicts = objective.needs(facts).head
            if predicts and objective.needs_whole_documents() and _answers_only(config):
                raise ValueError(
                    f"type={objective.type}: its loss counts all tokens, and answers_only=true of "
                    "a source asks for those of answers; use language_modeling, or "
                    "answers_only=false"
                )
            if config.data.packing is True and (setting := objective.needs_whole_documents()):
                raise ValueError(
                    f"{setting}: it needs blocks of one document each, and data.packing=true makes "
                    "others; use data.packing=auto, which leaves its streams unpacked"
                )


def _check_teacher(config: RunConfig, facts: ModelFacts) -> None:
    teacher, family = config.engine.teacher, config.model.family
    if teacher.share_base and config.student.weights is not None:
        raise ConfigError(
            f"engine.teacher.share_base: true, but student.weights={config.student.weights} are "
            "not the teacher's weights; use false"
        )
    families = ", ".join(PLAIN_LAYER_FAMILIES)
    if teacher.keep == "layer_inputs" and family not in PLAIN_LAYER_FAMILIES:
        raise ConfigError(
            f"engine.teacher.keep: layer_inputs is offered for families {families}, not "
            f"{family!r}; use qkv"
        )
    if not teacher.share_base:
        return
    if family not in PLAIN_LAYER_FAMILIES:
        raise ConfigError(
            f"engine.teacher.share_base: true is offered for families {families}, not {family!r}; "
            "use false"
        )
    for index, (name, stage) in enumerate(config.recipe.training.items()):
        if not any(o.needs(facts).teacher for o in config.objectives(name).values()):
            continue
        if not isinstance(stage.parameters, LoraParameters):
            raise ConfigError(
                f"engine.teacher.share_base: true, but recipe.stages.{name} trains base weights "
                f"(parameters.type={stage.parameters.type}), so they are not the teacher's; use "
                "false, or train adapters "
                f"with parameters@recipe.stages.{name}.parameters=lora"
            )
        if index:
            raise ConfigError(
                f"engine.teacher.share_base: true, but recipe.stages.{name} starts from what the "
                "stage before it has trained, which is not the teacher; use false"
            )


def _check_looks(config: RunConfig) -> None:
    every, parts = config.eval.every_steps, config.engine.sequence_parallel
    if every is not None and parts > 1:
        raise ConfigError(
            f"eval.every_steps: {every} needs whole blocks on a rank, and engine.sequence_parallel="
            f"{parts} spreads them; set eval.every_steps=null, or engine.sequence_parallel=1"
        )


def _check_sharing(config: RunConfig, facts: ModelFacts, rope: NativeRope, world_size: int) -> None:
    """Refuse what cannot be done on blocks that ranks share (src/training/sequence.py)."""
    parts = config.engine.sequence_parallel
    setting = f"engine.sequence_parallel={parts}"
    if world_size % parts:
        raise ConfigError(
            f"{setting}: as many ranks share each block, and {world_size} cannot be put into such "
            f"groups; start {parts} or a multiple of it (launch.nproc={parts}), or leave it at 1"
        )
    heads, keys = facts.heads, facts.kv_heads
    if not _shareable(facts, parts):
        allowed = [n for n in range(2, heads + 1) if _shareable(facts, n)]
        raise ConfigError(
            f"{setting}: the {heads} heads of {config.model.name}, with keys and values in {keys}, "
            f"cannot be dealt out to {parts} ranks evenly; give one of {allowed}, or 1"
        )
    if config.model.attention != "sdpa":
        raise ConfigError(
            f"model.attention: {config.model.attention} needs a mask of all tokens by all tokens, "
            f"which {setting} does not have; use sdpa"
        )
    kind = config.rope.exported(rope)["rope_type"]
    if kind in ("dynamic", "longrope") or rope.changes_at() is not None:
        raise ConfigError(
            f"rope.type: {config.rope.type} depends on the length of the sequence, which "
            f"no rank sees with {setting}; use another scaling, or engine.sequence_parallel=1"
        )
    for stage in config.recipe.training:
        _check_shared_streams(config, stage, facts)


def _shareable(facts: ModelFacts, parts: int) -> bool:
    """Whether each of `parts` ranks can have as many heads, with the keys and values they use."""
    keys = facts.kv_heads
    return facts.heads % parts == 0 and (keys % parts == 0 or parts % keys == 0)


def _check_shared_streams(config: RunConfig, stage: str, facts: ModelFacts) -> None:
    parts = config.engine.sequence_parallel
    setting = f"engine.sequence_parallel={parts}"
    windows = [window for window in facts.windows if window is not None]
    for name, stream in config.recipe.training[stage].streams.items():
        path = f"recipe.stages.{stage}.streams.{name}"
        if stream.length % parts:
            raise ConfigError(
                f"{path}.length: {stream.length} tokens cannot be dealt out evenly by {setting}; "
                f"give a multiple of {parts}"
            )
        if windows and min(windows) < stream.length:
            raise ConfigError(
                f"{path}.length: {stream.length} tokens are more than the sliding window of "
                f"{config.model.name}, {min(windows)}, which {setting} does not offer; give at "
                f"most {min(windows)}, or engine.sequence_parallel=1"
            )
        for term in stream.terms:
            objective = config.objective.terms[term]
            if (whole := objective.needs_whole_blocks()) is not None:
                raise ConfigError(
                    f"objective.terms.{term}.{whole}: it needs whole blocks on one rank, and "
                    f"{setting} spreads them; leave the setting out, or use "
                    "engine.sequence_parallel=1"
                )


def checked_schedule(config: RunConfig, name: str) -> StageSchedule:
    """The schedule of the stage `name`.

    Raises:
        ConfigError: its settings do not fit each other, or ranks that share blocks cannot share
            the last one.
    """
    stage, parts = config.recipe.training[name], config.engine.sequence_parallel
    with refused_at(f"recipe.stages.{name}."):
        schedule = StageSchedule(stage)
    for piece in schedule.pieces(schedule.steps - 1):
        if rest := piece.tokens % parts:
            raise ConfigError(
                f"recipe.stages.{name}.tokens={stage.tokens} ends on a block of {piece.tokens} "
                "tokens, which cannot be dealt out evenly by engine.sequence_parallel="
                f"{parts}: give {stage.tokens - rest} or {stage.tokens - rest + parts}"
            )
    return schedule


def check_projections(
    config: RunConfig, stage: str, projections: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse to train projections that the model lacks.

    Raises:
        ConfigError: with the projections that the model has.
    """
    parameters, model = config.recipe.training[stage].parameters, config.model
    path, allowed = f"recipe.stages.{stage}.parameters", ", ".join(projections)
    if isinstance(parameters, QkvParameters):
        missing = [p for p in QKV if p not in projections]
        if missing and FUSED_QKV not in projections:
            raise ConfigError(
                f"{path}.type: qkv trains {', '.join(missing)}, which {model.name} lacks; use "
                f"lora, with projections among {allowed}, or full"
            )
    elif isinstance(parameters, LoraParameters):
        unknown = [p for p in parameters.projections if p not in projections]
        if unknown:
            raise ConfigError(f"{path}.projections: {unknown} unknown; allowed: {allowed}")
