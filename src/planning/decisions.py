"""Decides the settings that are `auto`."""

from __future__ import annotations

from dataclasses import replace

from src.models.families import PLAIN_LAYER_FAMILIES
from src.planning import cost
from src.planning.cost import Setting
from src.planning.devices import DeviceFacts


def decide(setting: Setting, device: DeviceFacts) -> Setting:
    """The setting with gradient checkpointing and what the teacher keeps decided.

    Checkpointing is turned on where a stage does not fit the device without it.

    Args:
        setting: of a stage; its `checkpointing` and `keep` are not read.
        device: of each rank.
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
    wanted = any(o.needs(setting.facts).qkv_layers for o in setting.objectives.values())
    if not (wanted and setting.checkpointing) or family not in PLAIN_LAYER_FAMILIES:
        return qkv
    sharded = teacher.zero_stage == 3 and not teacher.share_base
    return qkv if sharded and _fits(qkv, device) else inputs


def _fits(setting: Setting, device: DeviceFacts) -> bool:
    return sum(cost.memory(setting).values()) <= device.usable
