"""Sizes and windows, read from a transformers config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.models.config import ModelError, ModelShape
from src.models.facts import ModelFacts
from src.models.families import family_of_type
from src.models.rope import scaling_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# transformers' names for kinds of layers.
FULL, SLIDING = "full_attention", "sliding_attention"

# The config's name for what norms add to the variance, by family.
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


def shape_of(config: PretrainedConfig) -> ModelShape:
    """Read the sizes from a transformers config.

    Raises:
        ModelError: a size is missing from it, or has another name.
    """
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    if missing := [size for size in needed if getattr(config, size, None) is None]:
        raise ModelError(
            f"a model of type {config.model_type!r} has no {', '.join(missing)} in its config, so "
            "its sizes are not known: give a model whose config has them"
        )
    heads, kv_heads, head_dim = attention_sizes(config)
    family = family_of_type(config.model_type)
    ropes = ropes_of(config)
    full, sliding = ropes.get(FULL) or ropes[""], ropes.get(SLIDING)
    native_scaling = scaling_of(full, config.max_position_embeddings)
    turned = full.get("partial_rotary_factor", 1.0)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    return ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=config.vocab_size,
        rope_theta=float(full["rope_theta"]),
        tied_embeddings=bool(config.tie_word_embeddings),
        norm_eps=next(
            (value for name in _NORM_EPS if (value := getattr(config, name, None)) is not None),
            # Some have it in their code (OLMo: PyTorch's own, which is this one's default too).
            ModelShape.norm_eps,
        ),
        sliding_rope_theta=None if sliding is None else float(sliding["rope_theta"]),
        query_scalar=None if scalar in (None, head_dim) else int(scalar),
        norms=family.norms,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        rotary_dim=None if turned == 1.0 else int(head_dim * turned),
        rope_scaling=None if native_scaling is None else native_scaling[0],
        original_window=None if native_scaling is None else native_scaling[1],
        attention_scale=getattr(config, "attention_multiplier", None),
        logits_scale=1 / (getattr(config, "logits_scaling", None) or 1.0),
    )


def without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a config with weights on the meta device, which take no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def attention_sizes(config: PretrainedConfig) -> tuple[int, int, int]:
    """Heads of queries, heads of keys, and their size, whatever the model's RoPE."""
    heads = config.num_attention_heads
    return (
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def ropes_of(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """RoPE parameters by kind of layer; under the empty name if all layers share them."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_kind = {kind: parameters[kind] for kind in (FULL, SLIDING) if kind in parameters}
    return by_kind or {"": parameters}


def facts_of(config: PretrainedConfig) -> ModelFacts:
    """What objectives may know of a model."""
    return shape_of(config).facts(attention_windows(config))


def attention_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """How far back each layer may look (None: to the start), from the model's own config.

    A query at i sees keys j with i - j < window.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == SLIDING else None for kind in kinds)


def frequency_class(config: PretrainedConfig, tokens: int, *, room: int = 0) -> int:
    """Texts of one class may be read side by side: each is turned as it would be alone.

    Dynamic RoPE and longrope go by the largest position of all rows, whichever row has it.

    Args:
        room: tokens that are added one at a time; the same for texts that are compared.
    """
    for rope in ropes_of(config).values():
        kind = rope.get("rope_type")
        if kind not in ("dynamic", "longrope"):
            continue
        native = (
            config.max_position_embeddings
            if kind == "dynamic"
            else rope["original_max_position_embeddings"]
        )
        if tokens + room <= native:
            continue
        # Beyond the window longrope has one table; all else there goes by the very length.
        return -1 if kind == "longrope" and tokens > native else tokens
    return 0
