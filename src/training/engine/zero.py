"""DeepSpeed's config, and weights that ZeRO-3 shards over the ranks."""

from __future__ import annotations

import gc
import hashlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from src.models.adapters import causal_model
from src.planning.devices import device_of, dtype_of

if TYPE_CHECKING:
    from src.models.assembly import Sharding
    from src.settings.engine import EngineConfig, StudentEngineConfig, TeacherEngineConfig


def load_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a device. It chooses its accelerator once, when it is imported.

    Raises:
        RuntimeError: this process has imported it for another kind of device.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    # It logs every buffer that it makes. Warnings and errors stay.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed uses old names of transformers and torch, which then warn at every collective.
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
        # DeepSpeed compiles its shared-memory collectives at first use, which needs g++ and over a
        # minute. Without them the ranks use gloo.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, as its engines do, without the two seconds of torch's inductor.

    Decorators of that module ask for compiled functions. No run here has that optimizer.
    """
    if "deepspeed.runtime.zero.muon.original_muon" in sys.modules:
        return
    from deepspeed.runtime import compiler

    compiled = compiler.compile
    compiler.compile = lambda *args, **kwargs: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled


def base_config(
    settings: StudentEngineConfig | TeacherEngineConfig, dtype: torch.dtype
) -> dict[str, Any]:
    """DeepSpeed's config of an engine, teacher or student, as far as it needs no network."""
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    if settings.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }


def prefetch_config(network: nn.Module) -> dict[str, int]:
    """How many sharded weights ZeRO-3 fetches in advance: those of the largest layer."""
    layers: Any = getattr(causal_model(network).get_decoder(), "layers", ())
    sizes = [sum(getattr(p, "ds_numel", p.numel()) for p in each.parameters()) for each in layers]
    return {"stage3_prefetch_bucket_size": max(sizes)} if sizes else {}


class _ZeroSharding:
    """Shards weights as a ZeRO-3 engine with this config does, while a model is put together.

    Unlike `zero.Init` as a context, it patches no class: the settings of one model cannot reach
    another.
    """

    def __init__(self, deepspeed: Any, ds_config: dict[str, Any]) -> None:
        self._deepspeed = deepspeed
        self._ds_config = ds_config
        self._sharded: Any = None

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        unsharded = [p for p in parameters if not hasattr(p, "ds_id")]
        if not unsharded:
            return
        if self._sharded is None:
            first = nn.ParameterList(unsharded[:1])
            self._deepspeed.zero.Init(module=first, config_dict_or_path=self._ds_config)
            self._sharded = unsharded[0]
        self._sharded.convert_to_zero_parameters(unsharded)

    @contextmanager
    def known(self) -> Iterator[None]:
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # transformers and PEFT ask whether such an object is alive.
        alive = HfDeepSpeedConfig(self._ds_config)
        yield
        del alive


def sharding(config: EngineConfig, part: Literal["student", "teacher"]) -> Sharding | None:
    """What shards the weights of a model for its engine; None without ZeRO-3.

    Make it and use it before that model's engine is made, and after other engines are.
    """
    settings = config.student if part == "student" else config.teacher
    if settings.zero_stage != 3:
        return None
    ds_config = base_config(settings, dtype_of(config.dtype))
    return _ZeroSharding(load_deepspeed(device_of(config.device)), ds_config)


@contextmanager
def gathered(parameter: nn.Parameter) -> Iterator[None]:
    """Inside the block, the parameter is whole on every rank, also under ZeRO-3."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters([parameter]):
        yield


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters on this rank."""
    held = (getattr(p, "ds_tensor", p) for p in module.parameters())
    return sum(x.numel() * x.element_size() for x in held)


def sha256(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Hash of named parameters, in the order of their names; a collective call under ZeRO-3."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda named: named[0]):
        with gathered(parameter):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def release_memory() -> None:
    """Give freed memory back to the device, once an engine has been destroyed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
