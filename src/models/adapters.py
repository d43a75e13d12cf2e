"""Which parameters of the student are trained: adapters, the q, k, v projections, or everything."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from src.models.assembly import Sharding


@dataclass(frozen=True)
class LoraParameters:
    """Low-rank adapters (Hu et al., 2106.09685) on the named projections.

    They are merged into the weights when their stage ends.

    Attributes:
        rank, alpha: an adapter adds alpha / rank * B A to a weight.
        projections: the linear layers of a decoder layer, by their names.
        use_dora: a trained magnitude for each output besides (DoRA: Liu et al., 2402.09353).
        use_rslora: alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski, 2312.03732).
    """

    type: Literal["lora"]
    rank: Annotated[int, Field(gt=0)]
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    projections: Annotated[tuple[str, ...], Field(min_length=1)]
    use_dora: bool = False
    use_rslora: bool = False


@dataclass(frozen=True)
class QkvParameters:
    """The q, k and v projections of every layer are trained, whole, and nothing else."""

    type: Literal["qkv"]


@dataclass(frozen=True)
class FullParameters:
    """All weights are trained."""

    type: Literal["full"]


AnyParameters = LoraParameters | QkvParameters | FullParameters
Parameters = Annotated[AnyParameters, Field(discriminator="type")]

# What QkvParameters train.
QKV = ("q_proj", "k_proj", "v_proj")


class ParametersError(ValueError):
    """Parameters that the model does not have."""


def make_trainable(
    network: PreTrainedModel,
    parameters: AnyParameters,
    *,
    seed: int,
    sharding: Sharding | None = None,
) -> nn.Module:
    """Freeze what is not trained and add adapters where asked for.

    Adapters take the network's own dtype: PEFT's float32 default would multiply in float32 too. The
    engine keeps float32 master weights. Where the network's weights were given to a `sharding`,
    the adapters' are as well.

    Returns:
        The network, wrapped by PEFT for LoRA.

    Raises:
        ParametersError: no module of the network has one of the projections' names.
    """
    if isinstance(parameters, FullParameters):
        return network.requires_grad_(True)

    names = {name.rpartition(".")[2] for name, _ in network.named_modules()}
    wanted = parameters.projections if isinstance(parameters, LoraParameters) else QKV
    missing = [p for p in wanted if p not in names]
    if missing:
        setting = (
            "parameters.projections has"
            if isinstance(parameters, LoraParameters)
            else "parameters.type=qkv trains"
        )
        raise ParametersError(
            f"{setting} {missing}, which this model lacks; its modules are "
            f"{', '.join(sorted(n for n in names if n.endswith('proj'))) or 'none named *proj'}"
        )
    if isinstance(parameters, QkvParameters):
        network.requires_grad_(False)
        for name, module in network.named_modules():
            if name.rpartition(".")[2] in QKV:
                module.requires_grad_(True)
        return network

    import torch
    from peft import LoraConfig, get_peft_model

    from src.models.assembly import adding_adapters

    lora = LoraConfig(
        r=parameters.rank,
        lora_alpha=parameters.alpha,  # type: ignore[arg-type]  # PEFT only multiplies by it
        lora_dropout=parameters.dropout,
        target_modules=list(parameters.projections),
        use_dora=parameters.use_dora,
        use_rslora=parameters.use_rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    # Drawn on the CPU from the run's seed, so that every rank and every device starts the same.
    by_weight = nullcontext() if sharding is None else adding_adapters(sharding)
    with torch.random.fork_rng(devices=[]), by_weight:
        torch.manual_seed(seed)
        return get_peft_model(network, lora, autocast_adapter_dtype=False)


def causal_model(network: nn.Module) -> PreTrainedModel:
    """The transformers model inside, with or without adapters around its layers."""
    from peft import PeftModel

    return network.get_base_model() if isinstance(network, PeftModel) else network  # type: ignore[return-value]


def load_trained(network: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Put trained parameters, by the names `named_parameters` gives, into a network built alike.

    Raises:
        ValueError: a name the network does not have, a trainable one that is not given, or a shape
            that differs.
    """
    import torch

    own = dict(network.named_parameters())
    trainable = {name for name, p in own.items() if p.requires_grad}
    if trainable != trained.keys():
        odd = sorted(trainable ^ trained.keys())[:5]
        raise ValueError(f"trained parameters do not fit the network; first differences: {odd}")
    odd = [name for name, value in trained.items() if value.shape != own[name].shape][:5]
    if odd:
        raise ValueError(f"trained parameters do not fit the network; first other shapes: {odd}")
    with torch.no_grad():
        for name, value in trained.items():
            own[name].copy_(value)


def merged(network: nn.Module) -> PreTrainedModel:
    """The transformers model with adapters merged into its weights (or as it is, without any)."""
    from peft import PeftModel

    return network.merge_and_unload(safe_merge=True) if isinstance(network, PeftModel) else network  # type: ignore[return-value]
