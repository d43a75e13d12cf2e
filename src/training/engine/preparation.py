"""The preparation of teacher and student before DeepSpeed takes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.models.adapters import causal_model, output_head
from src.models.facts import ModelFacts
from src.objectives.base import Needs
from src.passes.preparation import prepare_decoder
from src.passes.teacher import Head
from src.settings.engine import EngineConfig
from src.training.engine.ulysses import spread_attention
from src.training.engine.zero import gathered


def prepare(
    network: nn.Module,
    facts: ModelFacts,
    config: EngineConfig,
    device: torch.device,
    ends: Collection[int | None],
    *,
    whole_layers: bool,
    fused: bool,
) -> None:
    """Move buffers, spread attention over ranks, and prepare the decoder for passes.

    Args:
        ends: layers that passes may stop at; None for passes that run to the end.
        whole_layers: whether ZeRO-3 shards the weights and no pass runs a part of a layer alone.
    """
    # DeepSpeed leaves buffers where they are if weights are sharded.
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    if config.sequence_parallel > 1:
        spread_attention(network, facts, config.sequence_parallel)
    decoder = causal_model(network).get_decoder()
    prepare_decoder(decoder, ends, compiled=config.compile, fused=fused)
    if whole_layers:
        fetch_layers_whole(decoder, ends)


def fetch_layers_whole(decoder: nn.Module, ends: Collection[int | None]) -> None:
    """Let ZeRO-3 fetch the weights of a layer at once, not separately for each of its modules.

    A layer of a 7B model with adapters has some 25 modules, and fetching for each takes longer than
    their matrix products. Two kinds of layers are left as they are. The first layer: DeepSpeed
    takes a whole layer's gradients when the gradient of the layer's input is there, and the first
    layer's input has none. Layers from the first possible end on: DeepSpeed fetches for the
    backward pass when the gradient of the layer's output is there, and theirs may have none.
    """
    from deepspeed.utils import set_z3_leaf_module

    layers: Any = getattr(decoder, "layers", ())
    for layer in layers[1 : min((end for end in ends if end is not None), default=len(layers))]:
        set_z3_leaf_module(layer, True)


def teacher_head(
    network: nn.Module, needs: Iterable[Needs], device: torch.device, *, sharded: bool
) -> Head | None:
    """The teacher's output head for use after its pass; None if no objective wants it.

    ZeRO-3 gathers weights only while their own module runs in their own engine's pass, but the head
    runs chunk by chunk inside the student's loss. With sharded weights it is therefore a copy.
    """
    if not any(each.teacher_head for each in needs):
        return None
    model = causal_model(network)
    if not sharded:
        return output_head(model)
    head: Any = model.get_output_embeddings()
    weight = _copy(head.weight, device)
    bias = None if head.bias is None else _copy(head.bias, device)
    scaling = getattr(model.config, "logits_scaling", None) or 1.0
    return lambda hidden: functional.linear(hidden, weight, bias) / scaling


def _copy(parameter: nn.Parameter, device: torch.device) -> Tensor:
    with gathered(parameter):
        return parameter.detach().to(device, copy=True)
