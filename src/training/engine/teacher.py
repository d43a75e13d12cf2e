"""The engine of the frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Objective, Outputs
from src.passes.teacher import TeacherModule
from src.planning.devices import device_of, dtype_of
from src.training.engine import zero
from src.training.engine.preparation import prepare, teacher_head

if TYPE_CHECKING:
    from src.planning.plan import StagePlan
    from src.settings.engine import EngineConfig


class Teacher:
    """The frozen native model."""

    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        facts: ModelFacts,
        config: EngineConfig,
        planned: StagePlan,
    ) -> None:
        device, settings = device_of(config.device), config.teacher
        deepspeed = zero.load_deepspeed(device)
        network.requires_grad_(False).eval()
        needs = [objective.needs(facts) for objective in objectives.values()]
        sharded = settings.zero_stage == 3
        # With keep=layer_inputs, parts of a layer run alone to compute q, k and v again.
        whole_layers = sharded and planned.keep == "qkv"
        ends = {each.teacher_stops_at for each in needs}
        fused = planned.fused
        prepare(network, facts, config, device, ends, whole_layers=whole_layers, fused=fused)
        ds_config = zero.base_config(settings, dtype_of(config.dtype))
        ds_config["zero_optimization"] |= zero.prefetch_config(network)
        head = teacher_head(network, needs, device, sharded=sharded)
        self._engine, *_ = deepspeed.initialize(
            model=TeacherModule(network, planned.keep, head), config=ds_config
        )
        self._engine.eval()

    def outputs(self, batch: Batch, needs: Needs) -> Outputs:
        """Run a batch and return what is needed, without gradients."""
        with torch.no_grad():
            return self._engine(batch, needs)

    def weight_bytes(self) -> int:
        """Bytes of weights on this rank."""
        return zero.weight_bytes(self._engine.module)

    def sha256(self) -> str:
        """Hash of all weights, in the order of their names; a collective call under ZeRO-3."""
        return zero.sha256(self._engine.module.named_parameters())

    def close(self) -> None:
        """Free the engine."""
        self._engine.destroy()
        del self._engine
        zero.release_memory()
