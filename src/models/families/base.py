"""The facts of a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class LayerParts:
    """Modules of a decoder layer: its q, k, v come from `attention(norm(input))`.

    Attributes:
        norm, attention: by their names in the layer; no norm where attention reads the layer's
            input as it is.
        after: those that run after the attention, in order.
        output: the attention's projection back to the hidden size, by its name in it.
    """

    norm: str | None
    attention: str
    after: tuple[str, ...]
    output: str = "o_proj"


# Norm and attention, norm and MLP; each pair is added to the residual stream: LLaMA's layout.
SERIAL = LayerParts("input_layernorm", "self_attn", ("post_attention_layernorm", "mlp"))


def parts_of(parts: LayerParts) -> set[str]:
    """All modules of a layer."""
    return {parts.attention, *parts.after} | ({parts.norm} if parts.norm else set())


# Linear layers of a decoder layer, by the names of LLaMA's code.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """Facts about models of one kind.

    Attributes:
        model_type: of the config, as transformers has it.
        parts: of a layer, so that it can be run in part (src/passes/teacher.py); None if only whole
            layers can be run.
        projections: linear layers of a decoder layer, which adapters can be put on.
        norms: of a layer, each of the hidden size.
        fused: linear layers that compute several of LLaMA's, by the names of these.
        qk_norm: whether queries and keys have a norm of their own: of the head size, or (`wide`)
            over all heads together.
        qkv_bias: whether q, k and v projections have a bias.
        layer_types: whether the config lists each layer's kind (full or sliding attention).
        rope_by_layer_type: whether each kind has a RoPE of its own. Full-attention layers are
            scaled; sliding ones never look beyond their window, so they stay as they are.
        tables_only: whether its class in transformers reads no scaling but `longrope`, whose tables
            can hold any factors.
        length_is_scaled: whether vLLM takes `max_position_embeddings` as it is; for other families
            it multiplies by the scaling's factor.
        random_config: entries of a config for random weights, besides sizes.
        llama_operators: whether norms, RoPE and the gated MLP compute what LLaMA's do, so that they
            can be fused (src/passes/fused.py).
    """

    name: str
    model_type: str
    parts: LayerParts | None = SERIAL
    projections: tuple[str, ...] = PROJECTIONS
    norms: int = 2
    fused: Mapping[str, str] = field(default_factory=dict)
    qk_norm: bool | Literal["wide"] = False
    qkv_bias: bool = False
    layer_types: bool = False
    rope_by_layer_type: bool = False
    tables_only: bool = False
    length_is_scaled: bool = False
    random_config: Mapping[str, Any] = field(default_factory=dict)
    llama_operators: bool = True
