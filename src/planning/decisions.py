"""Decides the settings that are `auto`."""

from __future__ import annotations

from dataclasses import replace

from src.models.families import PLAIN_LAYER_FAMILIES, family_of
from src.planning import cost
from src.planning.cost import Setting
from src.planning.devices import DeviceFacts


def decide(setting: Setting, device: DeviceFacts) -> Setting:
    """The setting with everything decided that `auto` leaves to the plan."""
    engine = setting.config.engine
    micro_batch = engine.student.micro_batch
    setting = replace(
        setting,
        fused=_fused(setting, device),
        micro_batch=1 if micro_batch == "auto" else micro_batch,
    )
    setting = _with_checkpointing(setting, device)
    if micro_batch == "auto" and not device.is_cpu:
        setting = _with_largest_micro_batch(setting, device)
    graphs = engine.cuda_graphs
    if graphs == "auto":
        graphs = not device.is_cpu and why_no_graphs(setting) is None
    return replace(setting, graphs=graphs)


def why_no_graphs(setting: Setting) -> str | None:
    """What stands against recording a stage's micro-steps as CUDA graphs; None for nothing."""
    config = setting.config
    engine = config.engine
    if engine.cuda_graphs is False:
        return "engine.cuda_graphs=false"
    if setting.checkpointing:
        return "layers are checkpointed"
    if engine.compile:
        return "layers are compiled"
    if 3 in (engine.student.zero_stage, engine.teacher.zero_stage):
        return "ZeRO-3 fetches weights while layers run"
    if engine.sequence_parallel > 1:
        return "ranks exchange tokens while layers run"
    if config.rope.type in ("dynamic", "longrope"):
        return f"{config.rope.type} RoPE looks at the positions on the host"
    return None


def _fused(setting: Setting, device: DeviceFacts) -> bool:
    """Whether elementwise work runs as fused kernels. A compiled layer fuses it itself."""
    engine = setting.config.engine
    if engine.fused_kernels != "auto":
        return engine.fused_kernels
    allowed = family_of(setting.config.model.family).llama_operators
    return allowed and not device.is_cpu and not engine.compile


def _with_largest_micro_batch(setting: Setting, device: DeviceFacts) -> Setting:
    """The setting with as many blocks at once as fit, without checkpointing more for it.

    Only numbers of blocks that divide a rank's share of a step evenly are tried: fewer, larger
    launches of the same work.
    """
    longest = max(stream.length for stream in setting.stage.streams.values())
    blocks = max(1, setting.stage.step_tokens // (longest * setting.readers))
    for micro_batch in range(blocks, 0, -1):
        tried = replace(setting, micro_batch=micro_batch)
        if blocks % micro_batch == 0 and _fits(tried, device):
            return tried
    return setting


def _with_checkpointing(setting: Setting, device: DeviceFacts) -> Setting:
    """The setting with gradient checkpointing and what the teacher keeps decided.

    Checkpointing is turned on where a stage does not fit the device without it.
    """
    engine = setting.config.engine
    checkpointing = engine.student.gradient_checkpointing
    if checkpointing != "auto":
        return _with_keep(replace(setting, checkpointing=checkpointing), device)
    stored = _with_keep(replace(setting, checkpointing=False), device)
    # A compiled layer itself chooses what it keeps.
    if engine.compile or _fits(stored, device):
        return stored
    return _with_keep(replace(setting, checkpointing=True), device)


def _with_keep(setting: Setting, device: DeviceFacts) -> Setting:
    """The setting with what the teacher keeps decided.

    Beside checkpointed layers of the student it keeps layer inputs. A teacher whose own weights are
    sharded keeps q, k and v if they fit: making them again would fetch parts of its layers out of
    turn.
    """
    config = setting.config
    teacher, family = config.engine.teacher, config.model.family
    qkv, inputs = replace(setting, keep="qkv"), replace(setting, keep="layer_inputs")
    if teacher.keep != "auto":
        return qkv if teacher.keep == "qkv" else inputs
    wanted = any(needs.qkv_layers for needs in setting.needs.values())
    if not (wanted and setting.checkpointing) or family not in PLAIN_LAYER_FAMILIES:
        return qkv
    sharded = teacher.zero_stage == 3 and not teacher.share_base
    return qkv if sharded and _fits(qkv, device) else inputs


def _fits(setting: Setting, device: DeviceFacts) -> bool:
    return sum(cost.memory(setting).values()) <= device.usable
