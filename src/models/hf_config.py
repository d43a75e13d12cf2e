"""A model's transformers config: its own, the scaled one, and one for random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.models.checks import check_family, check_layers, check_rope, check_shape
from src.models.config import ModelConfig, ModelError, ModelShape, native_rope, stated_windows
from src.models.facts import ModelFacts
from src.models.families import FAMILIES, family_of
from src.models.rope import RopeScaling
from src.models.shapes import FULL, SLIDING, facts_of, shape_of, without_weights
from src.models.sources import label_of, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig


# Keys of `rope_parameters` that belong to a scaling.
_OF_SCALINGS = {"rope_type", "type", "factor", "original_max_position_embeddings"}
_OF_SCALINGS |= {"attention_factor", "attn_factor", "beta_fast", "beta_slow", "truncate"}
_OF_SCALINGS |= {"mscale", "mscale_all_dim", "short_factor", "long_factor"}
_OF_SCALINGS |= {"short_mscale", "long_mscale", "low_freq_factor", "high_freq_factor"}
_OF_SCALINGS |= {"max_trained_positions"}


def native_config(model: ModelConfig) -> PretrainedConfig:
    """The model's own transformers config, with native RoPE.

    Raises:
        ModelError: its sizes differ from `model.shape`, or its native RoPE is already scaled.
    """
    if model.random_weights:
        return _config_from_shape(model)
    config = read_config(model.source)
    check_family(model, config)
    check_rope(model, config)
    if model.family not in FAMILIES:
        check_layers(model, config)
    if model.shape is not None:
        check_shape(model, config, label_of(model.source))
    return config


def _config_from_shape(model: ModelConfig) -> PretrainedConfig:
    from transformers import AutoConfig

    shape, family = model.shape, family_of(model.family)
    assert shape is not None
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied_embeddings,
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": model.native_window,
        # Activations of order one at any width; the usual 0.02 leaves a narrow model's attention
        # uniform, with nothing to distil.
        "initializer_range": shape.hidden**-0.5,
        "rope_parameters": _rope_from_shape(model, shape),
        # The byte tokenizer's end of text. The config classes' defaults exceed a small vocabulary.
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": None,
    }
    sizes |= family.random_config
    windows = stated_windows(model)
    if model.sliding_window is not None:
        sizes["sliding_window"] = model.sliding_window
        # Without this, Qwen's config classes drop the window.
        sizes["use_sliding_window"] = True
    if family.layer_types:
        sizes["layer_types"] = [SLIDING if window else FULL for window in windows]
    if family.rope_by_layer_type:
        sizes["rope_parameters"] = {
            FULL: {"rope_type": "default", "rope_theta": shape.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": shape.sliding_rope_theta},
        }
    if shape.query_scalar is not None:
        sizes["query_pre_attn_scalar"] = shape.query_scalar
    if shape.attention_scale is not None:
        sizes["attention_multiplier"] = shape.attention_scale
    if shape.logits_scale != 1.0:
        sizes["logits_scaling"] = 1 / shape.logits_scale
    return AutoConfig.for_model(family.model_type, **sizes)


def _rope_from_shape(model: ModelConfig, shape: ModelShape) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling is not None:
        parameters = shape.rope_scaling.rope_parameters(native_rope(model, shape).unscaled())
    if shape.rotary_dim is not None:
        parameters["partial_rotary_factor"] = shape.rotary_dim / shape.head_dim
    return parameters


def resolved_shape(model: ModelConfig) -> ModelShape:
    """The stated shape, or else the one in the model's own config, which may need the network."""
    return model.shape or shape_of(native_config(model))


def planned_facts(model: ModelConfig) -> ModelFacts:
    """The facts of a model; without a network if its shape is stated."""
    if model.shape is None:
        return facts_of(native_config(model))
    return model.shape.facts(stated_windows(model))


# Types of RoPE that transformers loads. Its own list comes with torch, which takes seconds to load.
_KNOWN_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


def scaled_config(model: ModelConfig, scaling: RopeScaling) -> PretrainedConfig:
    """The model's config with the scaling written into it as transformers 5 reads it.

    If each kind of layer has its own RoPE, only full-attention layers are scaled. Other keys
    of the model's entry are kept, because some classes read more from it than a scaling sets (Phi-3
    its partial_rotary_factor).

    Raises:
        ModelError: as `native_config`; or transformers does not support the scaling for this model,
            so that it could not be exported.
        ValueError: the scaling's fields do not fit the model.
    """
    from huggingface_hub.errors import StrictDataclassClassValidationError

    config = native_config(model)
    rope = native_rope(model, shape_of(config))
    native = config.rope_parameters
    parameters = scaling.exported(rope)
    if (kind := parameters["rope_type"]) not in _KNOWN_TYPES:
        raise ModelError(
            f"rope.type={scaling.type}: its rope_parameters have the rope_type {kind!r}, which "
            f"transformers does not know; there are {', '.join(_KNOWN_TYPES)}: return one of them, "
            "as src/models/rope/per_frequency.py does"
        )
    if rope.by_layer_type:
        config.rope_parameters = {**native, FULL: {**_unscaled(native[FULL]), **parameters}}
    else:
        config.rope_parameters = {**_unscaled(native), **parameters}
    base = scaling.base(rope)
    # A scaled RoPE that is scaled further is a table, for the whole target.
    longest = scaling.max_position_embeddings(base)
    config.max_position_embeddings = longest if base.scaling is None else scaling.target_length
    if hasattr(config, original := "original_max_position_embeddings"):
        # Phi-3 also states it outside, which would override the scaling's value when loaded.
        config.original_max_position_embeddings = parameters.get(original, model.native_window)
    try:
        config.validate()
    except StrictDataclassClassValidationError as error:
        raise ModelError(
            f"rope.type={scaling.type}: transformers does not take its rope_parameters for models "
            f"of type {config.model_type!r} ({error.__cause__}); use another scaling or model"
        ) from error
    return config


def _unscaled(parameters: dict[str, Any]) -> dict[str, Any]:
    """What a RoPE has besides a scaling."""
    return {key: value for key, value in parameters.items() if key not in _OF_SCALINGS}


def projection_sizes(model: ModelConfig, shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Linear layers of a decoder layer, by name: inputs and outputs.

    A listed family has LLaMA's names. For other families they are the model's own.

    Raises:
        ModelError: as `native_config`.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if model.family not in FAMILIES and model.shape is None:
        return _linear_layers(native_config(model))
    sizes = {
        "q_proj": (shape.hidden, queries),
        "k_proj": (shape.hidden, keys),
        "v_proj": (shape.hidden, keys),
        "o_proj": (queries, shape.hidden),
        "gate_proj": (shape.hidden, shape.intermediate),
        "up_proj": (shape.hidden, shape.intermediate),
        "down_proj": (shape.intermediate, shape.hidden),
        "qkv_proj": (shape.hidden, queries + 2 * keys),
        "gate_up_proj": (shape.hidden, 2 * shape.intermediate),
    }
    return {name: sizes[name] for name in family_of(model.family).projections}


def _linear_layers(config: PretrainedConfig) -> dict[str, tuple[int, int]]:
    from torch import nn

    network = without_weights(config)
    return {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module is not network.get_output_embeddings()
    }


def served_length(model: ModelConfig, scaling: RopeScaling) -> int | None:
    """The `max_seq_len` that an exported config needs, so that servers find the target length.

    vLLM takes the smallest length that a config states and multiplies it by the scaling's factor.
    None if `max_position_embeddings` suffices.
    """
    if family_of(model.family).length_is_scaled:
        return None
    base = scaling.base(native_rope(model, resolved_shape(model)))
    return scaling.multiplied_length(base) if base.scaling is None else None
