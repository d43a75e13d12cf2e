"""DeepSpeed engines for the frozen teacher and the trainable student; the only deepspeed importer.

Both models are always run by an engine, also in one process on a CPU. Each engine has a config of
its own and wraps a module whose forward returns what the engine is for: the teacher's outputs, or
the student's loss. (A loss made outside the student's engine from recorded tensors fails under
ZeRO-3.) The teacher is never part of the student's module tree, so it is in no optimizer and no
checkpoint; or, where they share their weights, it is the student's frozen part.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from src.models.adapters import causal_model
from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Objective, Outputs
from src.passes.capture import Attention, LayerPass, LayerQKV, attention_over_ranks
from src.passes.streaming import (
    Keep,
    SharedTeacherPass,
    TeacherPass,
    checkpoint_contexts,
    compile_layers,
    explicit_positions,
    show_layer_inputs,
    skip_unwanted,
)
from src.planning.cost import REDUCE_BUCKET
from src.planning.devices import DTYPES, device_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from src.models.assembly import Sharding
    from src.settings.config import (
        EngineConfig,
        OptimConfig,
        StudentEngineConfig,
        TeacherEngineConfig,
    )


def _deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a device. Its accelerator is chosen once, at import."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    # It reports every buffer it makes; warnings and errors stay.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Names that DeepSpeed still uses and that transformers and torch have replaced; it warns at
    # every collective.
    for renamed in (".*is_gradient_checkpointing.*", ".*torch.distributed.* is deprecated.*"):
        warnings.filterwarnings("ignore", renamed, FutureWarning)
    accelerator: Any = deepspeed.get_accelerator()
    chosen = accelerator.device_name()
    if chosen.split(":")[0] != device.type:
        raise RuntimeError(
            f"DeepSpeed was set up for {chosen!r} in this process (DS_ACCELERATOR="
            f"{os.environ['DS_ACCELERATOR']}); {device.type} needs a process of its own"
        )
    if device.type == "cpu":
        # Its shared-memory collectives are compiled at first use, which needs g++ and over a
        # minute; ranks talk through gloo without them.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


Head = Callable[[Tensor], Tensor]


class _TeacherModule(nn.Module):
    def __init__(self, network: nn.Module, keep: Keep, head: Head | None = None) -> None:
        super().__init__()
        self.network = network
        self._pass = TeacherPass(causal_model(network), keep)
        self._head = head

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        return _teach(self._pass, self._head, batch, needs)


def _teach(teacher: TeacherPass, head: Head | None, batch: Batch, needs: Needs) -> Outputs:
    ran = teacher.run(batch, needs)
    return Outputs(ran.hidden_bth, qkv=ran.qkv, head=head, hidden_layers_bth=ran.hidden_layers_bth)


def _teachers_head(
    network: nn.Module, wanted: Iterable[Needs], device: torch.device, *, sharded: bool
) -> Head | None:
    """The output head, for use after the teacher's pass; None where nobody wants it.

    Sharded weights are whole only while their own module runs in their own engine's pass, and the
    head runs piece by piece in the student's. So then it is a whole copy.
    """
    if not any(needs.teacher_head for needs in wanted):
        return None
    head: Any = causal_model(network).get_output_embeddings()
    if not sharded:
        return head
    weight = _copy(head.weight, device)
    bias = None if head.bias is None else _copy(head.bias, device)
    return lambda hidden: functional.linear(hidden, weight, bias)


def _copy(parameter: nn.Parameter, device: torch.device) -> Tensor:
    with _whole(parameter):
        return parameter.detach().to(device, copy=True)


class _StudentModule(nn.Module):
    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        facts: ModelFacts,
        shared: TeacherPass | None,
        shared_head: Head | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.objectives = dict(objectives)
        self.facts = facts
        self._shared = shared
        self._shared_head = shared_head
        wanted = [objective.needs(facts) for objective in objectives.values()]
        # Objectives of a mixture may reach different weights. DeepSpeed counts on each having a
        # gradient in every micro-step: under ZeRO-3 one that has none in a step's first keeps the
        # last step's, and with offload one that has none in the last loses what it had.
        self._reaches_all = len({(needs.stops_at, needs.head) for needs in wanted}) > 1

    def forward(
        self, batch: Batch, stream: str, teacher: Outputs | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = self.objectives[stream]
        needs = chosen.needs(self.facts)
        if needs.teacher and teacher is None:
            assert self._shared is not None
            teacher = _teach(self._shared, self._shared_head, batch, needs)
        student = self._run(batch, chosen, needs, teacher)
        loss, metrics = chosen.loss(batch, teacher, student, self.facts)
        if self._reaches_all and not needs.head:
            assert student.hidden_bth is not None
            assert student.head is not None
            loss = loss + 0.0 * student.head(student.hidden_bth[:, :1]).sum()
        return loss, metrics

    def _run(
        self, batch: Batch, objective: Objective, needs: Needs, teacher: Outputs | None
    ) -> Outputs:
        """Run the transformer below its output head, the objective at the layers it asks for."""
        model = causal_model(self.network)
        layers: dict[int, Any] = {}

        def visit(layer: int, qkv: LayerQKV, *, again: bool) -> None:
            taught = teacher.qkv[layer]() if teacher else None
            value = objective.layer(layer, taught, qkv, self.facts)
            if not again:
                layers[layer] = value

        positions_bt = batch.position_ids_bt
        if positions_bt is None:
            positions_bt = batch.contiguous_bt
        stops_at = None if self._reaches_all else needs.stops_at
        layer_pass = LayerPass(
            needs.qkv_layers, visit, hidden_layers=needs.hidden_layers, stops_at=stops_at
        )
        with layer_pass.running():
            ran = model.get_decoder()(
                input_ids=batch.input_ids_bt, use_cache=False, **explicit_positions(positions_bt)
            )
        hidden_bth = ran.last_hidden_state if stops_at is None else None
        outputs = Outputs(
            hidden_bth,
            layers=dict(layers),
            head=model.get_output_embeddings(),
            hidden_layers_bth=layer_pass.take_hidden(),
        )
        # Checkpointed layers hold on to `visit`, and what it gave holds on to them.
        layers.clear()
        return outputs


def spread_attention(network: nn.Module, facts: ModelFacts, parts: int) -> None:
    """Let a model's attention see whole blocks, whose tokens are spread over `parts` ranks each.

    It is DeepSpeed's Ulysses (Jacobs et al., 2309.14509): before attention each rank gives its part
    of all heads for whole blocks of its share of the heads, and back after it. Where there are more
    ranks than key-value heads, each of these is on several.

    A collective call. Afterwards the model runs parts of blocks only, on all ranks of a group.
    """
    import deepspeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
    group = _neighbours(parts)

    def over(attention: Attention) -> Attention:
        @cache
        def of_batch(blocks: int) -> Attention:
            return UlyssesSPAttentionHF(
                attention,
                batch_size=blocks,
                attn_head_count=facts.heads,
                attn_head_size=facts.head_dim,
                kv_head_count=facts.kv_heads,
                num_hidden_layers=facts.layers,
                process_group=group,  # type: ignore[arg-type]  # torch's, which DeepSpeed's is
                seq_length_is_variable=True,
            )

        def exchanging(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            return of_batch(query.shape[0])(module, query, *args, **kwargs)

        return exchanging

    causal_model(network).set_attn_implementation(attention_over_ranks(over))


# Groups of neighbouring ranks by their size, of a world. The world's own group must not be kept: it
# ends its threads when nobody holds it any more, and they must not live on while Python shuts down.
_groups: WeakKeyDictionary[distributed.ProcessGroup, dict[int, distributed.ProcessGroup]] = (
    WeakKeyDictionary()
)


def _neighbours(parts: int) -> distributed.ProcessGroup:
    """This rank's group of `parts` neighbouring ranks; a collective call the first time."""
    world = distributed.group.WORLD
    assert world is not None
    known = _groups.setdefault(world, {})
    if parts not in known:
        for first in range(0, world.size(), parts):
            ranks = range(first, first + parts)
            group: Any = distributed.new_group(list(ranks))
            if world.rank() in ranks:
                known[parts] = group
    return known[parts]


def _common_config(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
    }


class _ZeroSharding:
    """DeepSpeed's division of weights under ZeRO-3, as an engine makes it, for weights that come.

    It patches no class, as `zero.Init` does where it is used as a context: one model's settings
    cannot reach another.
    """

    def __init__(self, deepspeed: Any, ds_config: dict[str, Any]) -> None:
        self._deepspeed = deepspeed
        self._ds_config = ds_config
        self._divided: Any = None

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        whole = [p for p in parameters if not hasattr(p, "ds_id")]
        if not whole:
            return
        if self._divided is None:
            first = nn.ParameterList(whole[:1])
            self._deepspeed.zero.Init(module=first, config_dict_or_path=self._ds_config)
            self._divided = whole[0]
        self._divided.convert_to_zero_parameters(whole)

    @contextmanager
    def known(self) -> Iterator[None]:
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # transformers and PEFT ask whether one is alive.
        alive = HfDeepSpeedConfig(self._ds_config)
        yield
        del alive


def sharding(config: EngineConfig, part: Literal["student", "teacher"]) -> Sharding | None:
    """What divides the weights of a model that is to be an engine's; None where each rank has all.

    It is to be made, and used, before the engine of that model and after other engines.
    """
    settings = config.student if part == "student" else config.teacher
    if settings.zero_stage != 3:
        return None
    ds_config = _common_config(DTYPES[config.dtype]) | {"zero_optimization": _zero(settings)}
    return _ZeroSharding(_deepspeed(device_of(config.device)), ds_config)


def _buffers_to(network: nn.Module, device: torch.device) -> None:
    """Move buffers, which DeepSpeed leaves where they are if it finds divided weights."""
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def _prepare(
    network: nn.Module,
    facts: ModelFacts,
    config: EngineConfig,
    device: torch.device,
    ends: Collection[int | None],
    *,
    whole_layers: bool,
) -> None:
    """What teacher and student get alike before DeepSpeed takes them.

    `ends` are the layers that passes may stop at. `whole_layers` says that divided weights are
    wanted for whole layers at a time, and never for a part of one.
    """
    _buffers_to(network, device)
    if config.sequence_parallel > 1:
        spread_attention(network, facts, config.sequence_parallel)
    decoder = causal_model(network).get_decoder()
    if config.compile:
        compile_layers(decoder, ends)
    skip_unwanted(decoder, ends)
    show_layer_inputs(decoder)
    if whole_layers:
        _fetch_layers_whole(decoder, ends)


def _fetch_layers_whole(decoder: nn.Module, ends: Collection[int | None]) -> None:
    """Let ZeRO-3 fetch a layer's weights at once, not those of each of its projections and norms.

    A layer of a 7B with adapters has some 25 modules, and fetching for each takes longer than their
    products. The first layer and those from where passes may stop keep to that, though: DeepSpeed
    takes up a whole layer's gradients when that of the layer's input has been computed, which the
    first layer's is not, and fetches for the backward pass when that of its output has been.
    """
    from deepspeed.utils import set_z3_leaf_module

    layers: Any = getattr(decoder, "layers", ())
    for layer in layers[1 : min((end for end in ends if end is not None), default=len(layers))]:
        set_z3_leaf_module(layer, True)


class Teacher:
    """The frozen native model.

    Args:
        network: in evaluation mode, with no parameter that requires a gradient.
        objectives: by stream.
        facts: of the network.
        config: the run's engine settings.
        keep: what is left behind for each layer.
    """

    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        facts: ModelFacts,
        config: EngineConfig,
        keep: Keep,
    ) -> None:
        device = device_of(config.device)
        deepspeed = _deepspeed(device)
        network.requires_grad_(False).eval()
        wanted = [objective.needs(facts) for objective in objectives.values()]
        settings = config.teacher
        ends = {needs.teacher_stops_at for needs in wanted}
        # To give q, k and v again, parts of a layer run without it.
        whole_layers = settings.zero_stage == 3 and keep == "qkv"
        _prepare(network, facts, config, device, ends, whole_layers=whole_layers)
        ds_config = _common_config(DTYPES[config.dtype])
        ds_config["zero_optimization"] = _zero(settings) | _ahead(network)
        head = _teachers_head(network, wanted, device, sharded=settings.zero_stage == 3)
        self._engine, *_ = deepspeed.initialize(
            model=_TeacherModule(network, keep, head), config=ds_config
        )
        self._engine.eval()

    def outputs(self, batch: Batch, needs: Needs) -> Outputs:
        """Run a batch and return what was asked for, without gradients."""
        with torch.no_grad():
            return self._engine(batch, needs)

    def weight_bytes(self) -> int:
        """Bytes of weights on this rank."""
        return _weight_bytes(self._engine.module)

    def sha256(self) -> str:
        """Hash of all weights, in the order of their names; a collective call under ZeRO-3."""
        return _sha256(self._engine.module.named_parameters())

    def close(self) -> None:
        """Free the engine."""
        self._engine.destroy()
        del self._engine
        _release_memory()


class Student:
    """The model in training.

    Args:
        network: trainable parameters chosen, adapters added.
        objectives: by stream.
        facts: of the network.
        config: the run's engine settings.
        optim: AdamW's settings.
        accumulation: micro-steps of a full optimizer step.
        checkpointing: layers run again in the backward pass.
        native: the model's config with native RoPE, where the student's frozen weights are the
            teacher's as well; None where there is no teacher, or one of its own.
        keep: what a teacher of that kind leaves behind for each layer.
    """

    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        facts: ModelFacts,
        config: EngineConfig,
        optim: OptimConfig,
        *,
        accumulation: int,
        checkpointing: bool,
        native: PretrainedConfig | None = None,
        keep: Keep = "qkv",
    ) -> None:
        device = device_of(config.device)
        deepspeed = _deepspeed(device)
        settings = config.student
        wanted = [objective.needs(facts) for objective in objectives.values()]
        ends = {needs.stops_at for needs in wanted}
        # A teacher that shares the weights gives a layer's q, k and v again only inside that layer.
        _prepare(network, facts, config, device, ends, whole_layers=settings.zero_stage == 3)
        if checkpointing:
            causal_model(network).gradient_checkpointing_enable(
                {"use_reentrant": False, "context_fn": checkpoint_contexts}
            )
        network.train()
        dtype = DTYPES[config.dtype]
        ds_config = _common_config(dtype)
        # Boundaries are set by hand (see `backward`), so this only has to say that gradients of
        # several micro-steps are added up before a step.
        ds_config["gradient_accumulation_steps"] = max(2, accumulation)
        ds_config["gradient_clipping"] = optim.clip_norm
        ds_config["zero_optimization"] = _zero_config(config) | _ahead(network)
        if config.accumulation_dtype == "bfloat16":
            ds_config["data_types"] = {"grad_accum_dtype": "bf16"}
        trained = [p for p in network.parameters() if p.requires_grad]
        shared, head = None, None
        if native is not None:
            shared = SharedTeacherPass(network, keep, native, device)
            head = _teachers_head(network, wanted, device, sharded=settings.zero_stage == 3)
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=_StudentModule(network, objectives, facts, shared, head),
            model_parameters=trained,
            optimizer=_adamw(trained, optim, device, offload=settings.offload_optimizer),
            config=ds_config,
        )
        self._full_gradients = settings.zero_stage == 0 and dtype == torch.float32

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self._engine.module.network

    def loss(
        self, batch: Batch, stream: str, teacher: Outputs | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a stream's objective on a batch, and its metrics."""
        return self._engine(batch, stream, teacher)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-step's gradient; `last` marks the final one before `step`.

        The loss must carry its own share: gradients are summed over micro-steps and averaged over
        ranks.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> Tensor | float:
        """Clip, update and clear gradients; returns the global gradient norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self._full_gradients:
            # Plain float32 training: DeepSpeed clips without telling the norm.
            grads = [p.grad for p in self.network.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        self._engine.step()
        return self._engine.get_global_grad_norm() if norm is None else norm

    def trained_parameters(self) -> dict[str, Tensor]:
        """Whole trained parameters by name, on the CPU, on rank 0; empty on the others.

        A collective call under ZeRO-3.
        """
        gathered: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                with _whole(parameter):
                    if self._engine.global_rank == 0:
                        gathered[name] = parameter.detach().cpu().clone()
        return gathered

    def weight_bytes(self) -> int:
        """Bytes of weights on this rank."""
        return _weight_bytes(self.network)

    def frozen_sha256(self) -> str:
        """Hash of the weights that are not trained; a collective call under ZeRO-3."""
        named = self.network.named_parameters()
        return _sha256((name, p) for name, p in named if not p.requires_grad)

    def save(self, folder: Path) -> None:
        """Write weights that are trained and the optimizer's state; a collective call."""
        self._engine.save_checkpoint(
            str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote with the same number of ranks; a collective call.

        Raises:
            RuntimeError: the folder does not hold a checkpoint of this engine.
        """
        path, _ = self._engine.load_checkpoint(
            str(folder), tag="engine", load_module_strict=False, load_lr_scheduler_states=False
        )
        if path is None:
            raise RuntimeError(f"{folder} holds no checkpoint of this engine")

    def close(self) -> None:
        """Free the engine."""
        self._engine.destroy()
        del self._engine, self._optimizer
        _release_memory()


def _zero_config(config: EngineConfig) -> dict[str, Any]:
    settings = config.student
    # DeepSpeed's own default takes a gigabyte for it, whatever is reduced.
    zero = _zero(settings) | {"reduce_bucket_size": REDUCE_BUCKET}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return zero


def _zero(settings: StudentEngineConfig | TeacherEngineConfig) -> dict[str, Any]:
    """How weights are divided."""
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    if settings.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return zero


def _ahead(network: nn.Module) -> dict[str, int]:
    """How many divided weights are fetched before they are wanted: the largest layer's."""
    layers: Any = getattr(causal_model(network).get_decoder(), "layers", ())
    sizes = [sum(getattr(p, "ds_numel", p.numel()) for p in each.parameters()) for each in layers]
    return {"stage3_prefetch_bucket_size": max(sizes)} if sizes else {}


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
    # One kernel for all parameters, and no temporary copies of them.
    return torch.optim.AdamW(parameters, **common, fused=device.type == "cuda")


@contextmanager
def _whole(parameter: nn.Parameter) -> Iterator[None]:
    """Inside, the parameter is whole on every rank, also under ZeRO-3."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters([parameter]):
        yield


def _weight_bytes(module: nn.Module) -> int:
    """Bytes of parameters, under ZeRO-3 of this rank's part of them."""
    held = (getattr(p, "ds_tensor", p) for p in module.parameters())
    return sum(x.numel() * x.element_size() for x in held)


def _sha256(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda named: named[0]):
        with _whole(parameter):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
