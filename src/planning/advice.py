"""Refuses a run that does not fit its device, and advises settings that make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from src.planning import plan
from src.planning.devices import gib, host_memory
from src.planning.plan import Plan
from src.settings.config import RunConfig
from src.settings.strict import ConfigError


def check_fits(made: Plan, config: RunConfig) -> None:
    """Refuse a run that its device cannot hold, unless `allow_oversubscribe` is set.

    Raises:
        ConfigError: with the settings that would make it fit.
    """
    if config.allow_oversubscribe:
        return
    if not made.fits:
        raise ConfigError(misfit(made, config))
    host = host_memory() * config.launch.nodes
    if made.offloaded > host:
        raise ConfigError(
            f"engine.student.offload_optimizer: true needs an estimated {gib(made.offloaded)} GiB "
            f"of the host's memory, and there are {gib(host)} GiB; use more GPUs, train adapters "
            "(parameters@recipe.stages.STAGE.parameters=lora), or try with "
            "allow_oversubscribe=true"
        )


def misfit(made: Plan, config: RunConfig) -> str:
    """Why a run does not fit, and which settings would make it."""
    config = replace(config, engine=made.engine)
    worst = max(made.stages, key=lambda stage: stage.peak)
    device = made.device
    why = (
        f"stage {worst.name} needs an estimated {gib(worst.peak)} GiB a rank, and {device.name} "
        f"has {gib(device.usable)} GiB for it"
    )
    settings, made = _advised(made, config)
    if made.fits:
        return f"{why}; it fits with {typed(settings)} (or try with allow_oversubscribe=true)"
    more = f" with {typed(settings)} it would need {gib(made.peak)} GiB;" if settings else ""
    return (
        f"{why};{more} use more ranks with engine=zero3, shorter blocks or a smaller model (or try "
        "with allow_oversubscribe=true)"
    )


def _advised(made: Plan, config: RunConfig) -> tuple[dict[str, object], Plan]:
    """Settings below `engine` that make a run fit, or nearly fit, and the plan with them."""
    taken: dict[str, object] = {}
    for settings in _savings(config, taken, on_cpu=made.device.is_cpu):
        tried = _replanned(config, taken | settings, made)
        # A setting that saves nothing alone may save memory together with another one.
        if tried is not None and _excess(tried) <= _excess(made):
            taken |= settings
            made = tried
        if made.fits:
            break
    # A setting taken early may have become needless. The most expensive one is dropped first.
    for key in reversed(list(taken)):
        fewer = {k: v for k, v in taken.items() if k != key}
        tried = _replanned(config, fewer, made)
        if tried is not None and _excess(tried) <= _excess(made):
            taken, made = fewer, tried
    return taken, made


def _excess(made: Plan) -> float:
    """Bytes per rank that do not fit, over all stages."""
    return sum(max(0.0, stage.peak - made.device.usable) for stage in made.stages)


def _replanned(config: RunConfig, settings: Mapping[str, object], made: Plan) -> Plan | None:
    """The plan with other engine settings; None if they contradict each other."""
    parts: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}, "": {}}
    for key, value in settings.items():
        part, _, name = key.rpartition(".")
        parts[part][name] = value
    try:
        student = replace(config.engine.student, **parts["student"])
        teacher = replace(config.engine.teacher, **parts["teacher"])
        engine = replace(config.engine, student=student, teacher=teacher, **parts[""])
        changed = replace(config, engine=engine)
        return plan.make(changed, world_size=made.world_size, device=made.device)
    except ValueError:
        return None


def typed(settings: Mapping[str, object]) -> str:
    """Settings as a user types them."""
    return " ".join(f"engine.{key}={str(value).lower()}" for key, value in settings.items())


def _savings(
    config: RunConfig, taken: Mapping[str, object], *, on_cpu: bool
) -> Iterator[dict[str, object]]:
    """Settings below `engine` that save memory, the cheapest in time first.

    Args:
        taken: the settings that have been taken so far; read as it grows.
        on_cpu: the device's memory is the machine's, so nothing can be offloaded to it.
    """
    if config.engine.compile:
        yield {"compile": False}
    if config.engine.student.micro_batch not in ("auto", 1):
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
