"""The host's time of a step: Python and launches, which decide how fast small models train.

Launches run ahead of the GPU, so a step takes the longer of both sides. A CUDA graph replays a
micro-step's launches at once, and then only DeepSpeed's work for each trained tensor is left.
"""

from __future__ import annotations

from src.models.adapters import FullParameters
from src.planning.cost import Setting

# Seconds of a server's core for each decoder layer and micro-step: the teacher's forward pass; the
# student's forward and backward; each adapter, both ways; an objective at the layer; running the
# layer again. Fitted to benchmarks/results/step.json (one H200).
_TEACHER, _STUDENT, _ADAPTER, _OBJECTIVE, _AGAIN = 1.2e-3, 2.8e-3, 0.5e-3, 2.1e-3, 1.2e-3
# Compiled and fused layers launch fewer kernels.
_LEAN = 0.8
# Seconds for each trained tensor and step, and for the rest of a step.
_TENSOR, _STEP = 0.1e-3, 5e-3


def micro_step_seconds(setting: Setting, name: str) -> float:
    """Seconds that the host takes for a micro-step of a stream, without a CUDA graph."""
    wants, layers = setting.needs[name], setting.layers_run(name)
    layer = _STUDENT + (_AGAIN if setting.checkpointing else 0.0)
    layer += _TEACHER if wants.teacher else 0.0
    if setting.lora is not None:
        layer += _ADAPTER * len(setting.lora.projections)
    lean = _LEAN if setting.fused or setting.config.engine.compile else 1.0
    return layers * layer * lean + len(wants.qkv_layers) * _OBJECTIVE


def step_seconds(setting: Setting) -> float:
    """Seconds that the host takes for the rest of a step, graphs or not."""
    return _STEP + _TENSOR * _trained_tensors(setting)


def _trained_tensors(setting: Setting) -> int:
    layers = setting.shape.layers
    if setting.lora is not None:
        return 2 * layers * len(setting.lora.projections)
    if isinstance(setting.stage.parameters, FullParameters):
        return 9 * layers + 2
    return 3 * layers
