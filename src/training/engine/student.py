"""The engine of the trained student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Objective
from src.passes.checkpointing import checkpoint_layers
from src.passes.graphs import MicroStepGraphs
from src.passes.student import StudentModule, Teach
from src.passes.teacher import SharedTeacherPass
from src.planning.cost import REDUCE_BUCKET
from src.planning.devices import device_of, dtype_of
from src.training.engine import zero
from src.training.engine.clipping import DeviceClipping, skip_unless_finite
from src.training.engine.preparation import prepare, teacher_head
from src.training.engine.state import OptimizerState
from src.training.tensor_files import Part, SavedState

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from src.planning.plan import StagePlan
    from src.settings.config import OptimConfig, RunConfig
    from src.settings.engine import EngineConfig


class Student:
    """The model in training.

    Args:
        native: the model's config with native RoPE, if the teacher shares the student's frozen
            weights; None if there is no teacher, or one with weights of its own.
    """

    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        facts: ModelFacts,
        run: RunConfig,
        planned: StagePlan,
        native: PretrainedConfig | None = None,
    ) -> None:
        config, optim = run.engine, run.optim
        device, settings = device_of(config.device), config.student
        deepspeed = zero.load_deepspeed(device)
        needs = [objective.needs(facts) for objective in objectives.values()]
        sharded = settings.zero_stage == 3
        ends = {each.stops_at for each in needs}
        # A teacher that shares the weights computes a layer's q, k and v only inside that layer.
        prepare(network, facts, config, device, ends, whole_layers=sharded, fused=planned.fused)
        if planned.checkpointing:
            checkpoint_layers(network)
        network.train()
        shared = None
        if native is not None:
            head = teacher_head(network, needs, device, sharded=sharded)
            shared = SharedTeacherPass(network, planned.keep, native, device, head)
        trained = [p for p in network.parameters() if p.requires_grad]
        adamw = _adamw(trained, optim, device, offload=settings.offload_optimizer)
        self._clipping = None
        if _clips_on_device(config, device):
            self._clipping = DeviceClipping(adamw, optim.clip_norm)
        graphs = None
        if planned.graphs:
            graphs = MicroStepGraphs(network, objectives, required=config.cuda_graphs is True)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=StudentModule(network, objectives, facts, shared, graphs),
            model_parameters=trained,
            optimizer=adamw,
            config=_config(network, config, optim, planned.accumulation, device),
        )
        if config.dtype == "float32" and settings.zero_stage in (1, 2):
            # DeepSpeed itself looks only at gradients in narrower formats.
            self._engine.optimizer.check_grad_overflow = True
        self._adamw = adamw
        self._once: list[RemovableHandle] = []  # hooks of the next update only
        self._state = OptimizerState(self.network, self._engine, adamw)
        self._full_gradients = settings.zero_stage == 0 and dtype_of(config.dtype) == torch.float32

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self._engine.module.network

    def loss(
        self, batch: Batch, stream: str, teach: Teach | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a stream's objective on a batch, and its metrics.

        Args:
            teach: runs a teacher with weights of its own; None if there is none.
        """
        return self._engine(batch, stream, teach)

    def predictions(self, ids_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of next tokens (nats) and whether each is the most likely one, [b, t - 1].

        Without dropout and gradients. A collective call: every rank gives the same tokens.
        """
        self._engine.eval()
        with torch.no_grad():
            losses_bt, right_bt = self._engine(Batch(ids_bt), None, None)
        self._engine.train()
        return losses_bt, right_bt

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-step's gradient; `last` marks the final micro-step before `step`.

        Gradients are summed over micro-steps and averaged over ranks, so the loss must already be
        multiplied by its share of the step.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> Tensor | float:
        """Clip the gradients, update the weights and clear the gradients.

        If a gradient of any rank is not finite, weights and moments stay as they are.

        Returns:
            the global gradient norm before clipping; not finite if the update was skipped.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self._full_gradients:
            # Without ZeRO and in float32, DeepSpeed clips but does not report the norm, and does
            # not look for values that are not finite.
            grads = [p.grad for p in self.network.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
            self._skip_unless_finite(norm)
        self._engine.step()
        while self._once:
            self._once.pop().remove()
        if self._clipping is not None:
            return self._clipping.norm
        if getattr(self._engine.optimizer, "overflow", False):
            return math.inf  # DeepSpeed has skipped the update
        return self._engine.get_global_grad_norm() if norm is None else norm

    def _skip_unless_finite(self, norm: Tensor) -> None:
        """Let the next update leave the weights as they are if the norm is not finite."""
        if norm.device.type == "cuda":
            # Fused AdamW skips the update by itself, so the host need not wait for the norm.
            skip_unless_finite(self._adamw, norm)
        elif not norm.isfinite():
            # DeepSpeed clips first, which it cannot do without gradients.
            self._once.append(self._adamw.register_step_pre_hook(_without_gradients))

    def trained_parameters(self) -> dict[str, Tensor]:
        """Unsharded trained parameters by name, on rank 0's CPU; empty on other ranks.

        A collective call under ZeRO-3.
        """
        trained: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                with zero.gathered(parameter):
                    if self._engine.global_rank == 0:
                        trained[name] = parameter.detach().cpu().clone()
        return trained

    def weight_bytes(self) -> int:
        """Bytes of weights on this rank."""
        return zero.weight_bytes(self.network)

    def frozen_sha256(self) -> str:
        """Hash of the weights that are not trained; a collective call under ZeRO-3."""
        named = self.network.named_parameters()
        return zero.sha256((name, p) for name, p in named if not p.requires_grad)

    def state(self) -> list[Part]:
        """This rank's part of the trained weights, in float32, and of the optimizer's moments."""
        return self._state.parts()

    def load(self, saved: SavedState) -> None:
        """Take over what `state` gave on any number of ranks; a collective call under ZeRO-3.

        Raises:
            KeyError: the files do not hold the state of this network.
        """
        self._state.load(saved)

    def close(self) -> None:
        """Free the engine."""
        self._engine.destroy()
        del self._engine, self._optimizer, self._adamw, self._state
        zero.release_memory()


def _clips_on_device(config: EngineConfig, device: torch.device) -> bool:
    """Whether the optimizer's gradients are whole shards on a GPU, clipped without the host."""
    student = config.student
    return (
        device.type == "cuda"
        and config.dtype == "bfloat16"
        and student.zero_stage in (1, 2)
        and not student.offload_optimizer
        and config.sequence_parallel == 1
    )


def _config(
    network: nn.Module,
    config: EngineConfig,
    optim: OptimConfig,
    accumulation: int,
    device: torch.device,
) -> dict[str, Any]:
    """DeepSpeed's config of the student's engine."""
    settings = config.student
    ds_config = zero.base_config(settings, dtype_of(config.dtype))
    # `backward` sets the boundaries of steps, so this only has to say that a step adds up the
    # gradients of several micro-steps.
    ds_config["gradient_accumulation_steps"] = max(2, accumulation)
    if _clips_on_device(config, device):
        ds_config["bf16"]["check_grad_overflow"] = False
        ds_config["zero_optimization"]["compute_grad_norm"] = False
        ds_config["gradient_clipping"] = 0.0
    else:
        ds_config["gradient_clipping"] = optim.clip_norm
    if config.accumulation_dtype == "bfloat16":
        ds_config["data_types"] = {"grad_accum_dtype": "bf16"}
    # DeepSpeed's default bucket takes a gigabyte, however little is reduced.
    ds_config["zero_optimization"] |= {"reduce_bucket_size": REDUCE_BUCKET}
    ds_config["zero_optimization"] |= zero.prefetch_config(network)
    if settings.offload_optimizer:
        ds_config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return ds_config


def _without_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """AdamW leaves parameters without a gradient, and their moments, as they are."""
    optimizer.zero_grad(set_to_none=True)


def _adamw(
    parameters: list[nn.Parameter], optim: OptimConfig, device: torch.device, *, offload: bool
) -> torch.optim.Optimizer:
    common: dict[str, Any] = {
        "lr": 0.0,
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameters, **common)
    # Fused: one kernel for all parameters, without temporary copies of them.
    return torch.optim.AdamW(parameters, **common, fused=device.type == "cuda")
