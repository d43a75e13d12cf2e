"""The trained parameters of the student: adapters, the q, k, v projections, or all weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from src.models.families import family_of_type

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
        use_dora: also trains a magnitude for each output (DoRA: Liu et al., 2402.09353).
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
    """All weights of the q, k and v projections of every layer are trained, and nothing else."""

    type: Literal["qkv"]


@dataclass(frozen=True)
class FullParameters:
    """All weights are trained."""

    type: Literal["full"]


AnyParameters = LoraParameters | QkvParameters | FullParameters
Parameters = Annotated[AnyParameters, Field(discriminator="type")]

# The modules that QkvParameters train: these three, or the one that computes all of them.
QKV = ("q_proj", "k_proj", "v_proj")
FUSED_QKV = "qkv_proj"


class ParametersError(ValueError):
    """Parameters that the model does not have."""


def in_fused(parameters: AnyParameters, fused: Mapping[str, str]) -> AnyParameters:
    """Parameters by the names of the linear layers that the model's family has.

    Args:
        parameters: by LLaMA's names or by the family's own.
        fused: linear layers that compute several of LLaMA's, by the names of these.

    Raises:
        ParametersError: some but not all of those that one layer computes are named.
    """
    if not isinstance(parameters, LoraParameters) or not fused:
        return parameters
    named = parameters.projections
    for fused_name in dict.fromkeys(fused[name] for name in named if name in fused):
        parts = [name for name, layer in fused.items() if layer == fused_name]
        if missing := [part for part in parts if part not in named]:
            raise ParametersError(
                f"projections={list(named)}: this model computes {', '.join(parts)} in one layer, "
                f"{fused_name}: name {', '.join(missing)} too, or none of them"
            )
    chosen = dict.fromkeys(fused.get(name, name) for name in named)
    return replace(parameters, projections=tuple(chosen))


def make_trainable(
    network: PreTrainedModel,
    parameters: AnyParameters,
    *,
    seed: int,
    sharding: Sharding | None = None,
) -> nn.Module:
    """Freeze the weights that are not trained, and add adapters if the settings say so.

    Adapters have the network's dtype: PEFT's float32 default would also multiply in float32. The
    engine keeps float32 master weights. If a `sharding` took the network's weights, it takes the
    adapters' weights too.

    Returns:
        The network, wrapped by PEFT for LoRA.

    Raises:
        ParametersError: no module of the network has one of the projections' names.
    """
    if isinstance(parameters, FullParameters):
        return network.requires_grad_(True)

    parameters = in_fused(parameters, family_of_type(network.config.model_type).fused)
    assert not isinstance(parameters, FullParameters)
    _check_projections(network, parameters)
    if isinstance(parameters, QkvParameters):
        network.requires_grad_(False)
        for name, module in network.named_modules():
            if name.rpartition(".")[2] in (*QKV, FUSED_QKV):
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


def _check_projections(
    network: PreTrainedModel, parameters: LoraParameters | QkvParameters
) -> None:
    names = {name.rpartition(".")[2] for name, _ in network.named_modules()}
    adapters = isinstance(parameters, LoraParameters)
    wanted = parameters.projections if adapters else (QKV, (FUSED_QKV,))[FUSED_QKV in names]
    if missing := [name for name in wanted if name not in names]:
        setting = "parameters.projections has" if adapters else "parameters.type=qkv trains"
        raise ParametersError(
            f"{setting} {missing}, which this model lacks; its modules are "
            f"{', '.join(sorted(n for n in names if n.endswith('proj'))) or 'none named *proj'}"
        )


def causal_model(network: nn.Module) -> PreTrainedModel:
    """The transformers model inside a network with or without adapters."""
    from peft import PeftModel

    return network.get_base_model() if isinstance(network, PeftModel) else network  # type: ignore[return-value]


def output_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What maps a model's last hidden states to its logits.

    It is the output embedding. Granite also divides what that gives by `logits_scaling`.
    """
    head: Any = model.get_output_embeddings()
    scaling = getattr(model.config, "logits_scaling", None) or 1.0
    return head if scaling == 1.0 else lambda hidden: head(hidden) / scaling


def load_trained(network: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Put trained parameters, by their names in `named_parameters`, into an equally built network.

    Raises:
        ValueError: the network lacks a name, a trainable parameter is missing, or a shape differs.
    """
    import torch

    parameters = dict(network.named_parameters())
    trainable = {name for name, p in parameters.items() if p.requires_grad}
    if trainable != trained.keys():
        odd = sorted(trainable ^ trained.keys())[:5]
        raise ValueError(f"trained parameters do not fit the network; first differences: {odd}")
    odd = [name for name, value in trained.items() if value.shape != parameters[name].shape][:5]
    if odd:
        raise ValueError(f"trained parameters do not fit the network; first other shapes: {odd}")
    with torch.no_grad():
        for name, value in trained.items():
            parameters[name].copy_(value)


def merged(network: nn.Module) -> PreTrainedModel:
    """The transformers model with adapters, if it has any, merged into its weights."""
    from peft import PeftModel

    return network.merge_and_unload(safe_merge=True) if isinstance(network, PeftModel) else network  # type: ignore[return-value]
