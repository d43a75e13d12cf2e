"""Refusals of a model's config and files, with what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from src.models.config import ModelConfig, ModelError, ModelShape, stated_windows
from src.models.families import FAMILIES, family_of
from src.models.rope import NATIVE_TYPES, scaling_of
from src.models.shapes import FULL, SLIDING, attention_windows, facts_of, shape_of, without_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Config keys that change logits or attention scores from the plain products that objectives assume,
# and the values that change nothing.
_BEYOND_PRODUCTS = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "logit_scale": 1.0,
}


def check_family(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse a model of another family, or with features that this program does not support."""
    from transformers import AutoModelForCausalLM

    family = family_of(model.family)
    if config.model_type != family.model_type:
        listed = [name for name, f in FAMILIES.items() if f.model_type == config.model_type]
        raise ModelError(
            f"model.family={model.family} is for models of type {family.model_type!r}, but "
            f"{model.name} is of type {config.model_type!r}: use model.family="
            f"{listed[0] if listed else config.model_type}"
        )
    classes: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in classes or not hasattr(config, "num_attention_heads"):
        raise ModelError(
            f"model {model.name} is of type {config.model_type!r}, which transformers does not "
            "load as a text model with attention layers throughout: give a text-only model"
        )
    if not classes[type(config)]._supports_attention_backend:
        raise ModelError(
            f"model {model.name}: the attention of {classes[type(config)].__name__} cannot be "
            "replaced, so its q, k and v cannot be captured (it lacks transformers' attention "
            "interface); give another model"
        )
    for name, plain in _BEYOND_PRODUCTS.items():
        value = getattr(config, name, plain)
        if value not in (None, plain):
            raise ModelError(
                f"model {model.name} has {name}={value} in its config, which the objectives do not "
                "know: without it their scores and logits would not be the model's"
            )
    others = set(getattr(config, "layer_types", None) or ()) - {SLIDING, FULL}
    if others:
        raise ModelError(
            f"model {model.name} has layers of {', '.join(sorted(others))}, which relations cannot "
            f"follow: only {FULL} and {SLIDING} can be distilled"
        )


def check_layers(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse an unlisted model whose attention differs from the defaults for its config."""
    network = without_weights(config)
    if network.get_decoder() is network:
        raise ModelError(
            f"model {model.name}: {type(network).__name__} does not say which of its parts is the "
            "decoder (get_decoder), whose hidden states the objectives need"
        )
    attentions: dict[Any, Any] = {
        module.layer_idx: module
        for module in network.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "scaling")
    }
    facts = facts_of(config)
    for layer, window in enumerate(facts.windows):
        attention: Any = attentions.get(layer)
        actual = None
        if attention is not None:
            actual = (attention.scaling, getattr(attention, "sliding_window", None))
        expected = (facts.scale or facts.head_dim**-0.5, window)
        if actual is None or not math.isclose(actual[0], expected[0]) or actual[1] != window:
            has = "no attention with q, k, v"
            if actual is not None:
                has = f"scale {actual[0]:.4g} and window {actual[1]}"
            raise ModelError(
                f"model {model.name}: layer {layer} of {type(network).__name__} has {has}, but its "
                f"config seems to say scale {expected[0]:.4g} and window {window}; add a "
                f"file to src/models/families for {model.family}"
            )


def check_rope(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse position encodings that no scaling here supports."""
    family = family_of(model.family)
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ModelError(
            f"model {model.name} has no rope_parameters in its config: only models whose positions "
            "are RoPE can be scaled"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    by_layer = {kind: parameters[kind] for kind in kinds if kind in parameters}
    if bool(by_layer) != family.rope_by_layer_type:
        raise ModelError(
            f"model {model.name} has "
            f"{'a RoPE for each kind of layer' if by_layer else 'one RoPE for all layers'}, which "
            f"is not what family {model.family} has; rope_parameters is {parameters}; add "
            "a file to src/models/families that says which of them is scaled"
        )
    for one in by_layer.values() if by_layer else [parameters]:
        theta = one.get("rope_theta")
        if not isinstance(theta, int | float) or not 0 < theta < math.inf:
            raise ModelError(
                f"model {model.name} has rope_theta={theta} in its config; allowed: numbers above "
                "0: copy the model's own config.json"
            )
        try:
            scaling_of(one, config.max_position_embeddings)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"model {model.name} has a RoPE that cannot be scaled ({error}); its "
                f"rope_parameters are {parameters}; known types are {', '.join(NATIVE_TYPES)}"
            ) from error


def check_shape(model: ModelConfig, config: PretrainedConfig, place: str) -> None:
    """Refuse a config from `place` whose sizes or windows differ from what the settings state."""
    assert model.shape is not None
    if not _same(read := shape_of(config), model.shape):
        raise ModelError(f"model.shape says {model.shape} but {place} holds {read}")
    if (windows := attention_windows(config)) != stated_windows(model):
        raise ModelError(
            f"model.sliding_window={model.sliding_window} and model.full_attention_every="
            f"{model.full_attention_every} mean windows {stated_windows(model)}, layer by "
            f"layer, but {place} has {windows}"
        )


def _same(read: ModelShape, stated: ModelShape) -> bool:
    """Equal up to float32 rounding: GGUF files store norm_eps and rope_theta as float32."""
    pairs = zip(astuple(read), astuple(stated), strict=True)
    return all(
        a == b
        or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6))
        for a, b in pairs
    )


def check_weights(model: ModelConfig, location: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that transformers has drawn at random because the files lack them.

    Weights that are tied to others do not count.
    """
    faults = [
        f"{name} has shape {list(shape)}, the model {list(wanted)}"
        for name, shape, wanted in sorted(report["mismatched_keys"])
    ] + [f"{name} is missing" for name in sorted(report["missing_keys"])]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(
            f"model {model.name} cannot be loaded: {location} does not hold its weights: "
            f"{'; '.join(faults[:3])}{more}; copy or save the model again, or give the config that "
            "belongs to these weights"
        )
