"""How long a step takes: the device's work, or the host's where that is longer.

The device's time is the sum of matrix products at a share of its rate and of memory traffic at a
share of its bandwidth; benchmarks/step.py compares with what is measured. The host's time is Python
and launches, which decide how fast small models train. Launches run ahead of the GPU, so a step
takes the longer of both sides. A CUDA graph replays a micro-step's launches at once, and then only
DeepSpeed's work for each trained tensor is left.
"""

from __future__ import annotations

from src.models.adapters import FullParameters
from src.planning.cost import Setting, block_work, masked_layers
from src.planning.devices import DeviceFacts
from src.training.schedule import StageSchedule

# Shares of the device's matrix rate that kinds of work reach, and of its bandwidth: fitted to
# benchmarks/results/step.json and kernel.json (one H100 with heads of 128).
_PRODUCTS, _ATTENTION, _RELATIONS, _BANDWIDTH, _LINK = 0.63, 0.58, 0.49, 0.75, 0.6
# Bytes a second between a GPU and its host, and of the host's memory: of a present server, guessed.
_HOST_LINK, _HOST_BANDWIDTH = 2e10, 1e11
# Attention and relations reach half of their shares at this many tokens, and all of them at many.
_HALF_ATTENTION, _HALF_RELATIONS = 1100, 850
# Attention and relations of heads of 128 reach their shares. With smaller heads, exponentials take
# a larger part: the share falls as d / (d + these). Fitted to step.json's small models (one H200).
_HEAD_ATTENTION, _HEAD_RELATIONS = 80, 100
# Times that attention takes with a mask, which no kernel skips blocks of: fitted to Gemma-3-1B.
_MASKED = 4.8

# Seconds of a server's core for each decoder layer and micro-step: the teacher's forward pass; the
# student's forward and backward; each adapter, both ways; an objective at the layer; running the
# layer again. Fitted to benchmarks/results/step.json (one H200).
_TEACHER, _STUDENT, _ADAPTER, _OBJECTIVE, _AGAIN = 1.2e-3, 2.8e-3, 0.5e-3, 2.1e-3, 1.2e-3
# Compiled and fused layers launch fewer kernels.
_LEAN = 0.8
# Seconds for each trained tensor and step, and for the rest of a step.
_TENSOR, _STEP = 0.1e-3, 5e-3


def _block_seconds(setting: Setting, name: str, device: DeviceFacts) -> float:
    """Seconds of a block's work on one device of known speed."""
    assert device.matrix_rate is not None
    assert device.bandwidth is not None
    done, length = block_work(setting, name), setting.stage.streams[name].length
    d = setting.shape.head_dim

    def smaller(half: int) -> float:
        return 128 / (128 + half) * (d + half) / d

    exchanged = 0.0
    if setting.parts > 1 and device.link is not None:
        exchanged = _exchanged(setting, name) / (device.link * _LINK)
    masked = masked_layers(setting, name) / setting.shape.layers
    attention = done.attention * (1 + masked * (_MASKED - 1))
    seconds = (
        done.products / _PRODUCTS
        + attention / _ATTENTION * (1 + _HALF_ATTENTION / length) * smaller(_HEAD_ATTENTION)
        + done.relations / _RELATIONS * (1 + _HALF_RELATIONS / length) * smaller(_HEAD_RELATIONS)
    )
    seconds = seconds / device.matrix_rate + done.traffic / (device.bandwidth * _BANDWIDTH)
    return seconds + exchanged


def _exchanged(setting: Setting, name: str) -> float:
    """Bytes of a block that leave one rank for another: q, k and v before attention, its output."""
    wants, layers = setting.needs[name], setting.layers_run(name)
    again = 1 if setting.checkpointing else 0
    passes = float((2 + again) * layers)
    if wants.teacher:
        passes += layers
        passes += len(wants.qkv_layers) * (1 + again) if setting.keep == "layer_inputs" else 0
    numbers = 2 * setting.queries + 2 * setting.keys * setting.copies
    elsewhere = (setting.parts - 1) / setting.parts
    return passes * setting.stage.streams[name].length * setting.width * numbers * elsewhere


def step_seconds(setting: Setting, schedule: StageSchedule, device: DeviceFacts) -> float | None:
    """Seconds of a full optimizer step; None for a device of unknown speed."""
    if device.matrix_rate is None or device.bandwidth is None:
        return None
    work = _device_seconds(setting, schedule, device)
    if device.is_cpu:
        return work
    rest = _STEP + _TENSOR * _trained_tensors(setting)  # of the host, with graphs or without
    if setting.graphs:
        return max(work, rest)
    micro_steps = schedule.micro_steps(
        0, rank=0, world_size=setting.readers, micro_batch=setting.micro_batch
    )
    return max(work, rest + sum(_host_micro_step_seconds(setting, m.stream) for m in micro_steps))


def busy(setting: Setting, schedule: StageSchedule) -> float:
    """Share of the ranks' micro-steps that carry a block of their own."""
    readers, micro_batch = setting.readers, setting.micro_batch
    turns = [
        micro
        for rank in range(readers)
        for micro in schedule.micro_steps(0, rank=rank, world_size=readers, micro_batch=micro_batch)
    ]
    return sum(1 for micro in turns if micro.pieces) / len(turns)


def _device_seconds(setting: Setting, schedule: StageSchedule, device: DeviceFacts) -> float:
    assert device.bandwidth is not None
    ranks, bandwidth = setting.world_size, device.bandwidth * _BANDWIDTH
    seconds = sum(
        tokens / setting.stage.streams[name].length * _block_seconds(setting, name, device)
        for name, tokens in schedule.tokens_read().items()
    )
    # A rank without a block of its own repeats another's, and all wait for the last one.
    seconds /= schedule.steps * ranks * busy(setting, schedule)
    student, teacher = setting.config.engine.student, setting.config.engine.teacher
    # AdamW reads and writes master weight and moments, and clipping its gradient.
    shards = ranks if student.zero_stage else 1
    if student.offload_optimizer:
        # The gradient goes down and the weights come back; the host's memory is common to all.
        seconds += (4 + setting.width) * setting.trainable / shards / _HOST_LINK
        seconds += 48 * setting.trainable / _HOST_BANDWIDTH
    else:
        seconds += 48 * setting.trainable / shards / bandwidth
    if ranks > 1 and device.link is not None:
        link = device.link * _LINK
        seconds += 2 * setting.trainable * setting.width / link
        micro_steps = schedule.accumulation(
            world_size=setting.readers, micro_batch=setting.micro_batch
        )
        # Sharded weights are fetched for each pass over them, the teacher's by its owner.
        passes = (3 if setting.checkpointing else 2) if student.zero_stage == 3 else 0
        owner = student if teacher.share_base else teacher
        passes += 1 if setting.has_teacher and owner.zero_stage == 3 else 0
        seconds += passes * micro_steps * setting.shape.parameters * setting.width / link
    return seconds


def _host_micro_step_seconds(setting: Setting, name: str) -> float:
    """Seconds that the host takes for a micro-step of a stream, without a CUDA graph."""
    wants, layers = setting.needs[name], setting.layers_run(name)
    layer = _STUDENT + (_AGAIN if setting.checkpointing else 0.0)
    layer += _TEACHER if wants.teacher else 0.0
    if setting.lora is not None:
        layer += _ADAPTER * len(setting.lora.projections)
    lean = _LEAN if setting.fused or setting.config.engine.compile else 1.0
    return layers * layer * lean + len(wants.qkv_layers) * _OBJECTIVE


def _trained_tensors(setting: Setting) -> int:
    layers = setting.shape.layers
    if setting.lora is not None:
        return 2 * layers * len(setting.lora.projections)
    if isinstance(setting.stage.parameters, FullParameters):
        return 9 * layers + 2
    return 3 * layers
