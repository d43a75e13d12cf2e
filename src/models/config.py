"""Settings of a model, the config group `model`: where its weights are, and facts about it.

No file states some of these facts reliably, such as the length that a model was trained at. Others,
such as its shape, must be known before any file is fetched. Nothing here needs torch or
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from src.models.facts import ModelFacts
from src.models.families import FAMILIES, Family, family_of
from src.models.rope import NativeRope, RopeScaling

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


# Of the tokenizer that models with random weights use (src/models/byte_tokenizer.py).
BYTE_TOKENS = 257
# The most tokens of a window and of a run, and the most of any size of a model: what no machine
# can hold is a mistake, and arithmetic on it takes for ever.
MOST_LENGTH, MOST_TOKENS, MOST_SIZE, MOST_LAYERS = 2**30, 10**15, 2**24, 10_000
Length = Annotated[int, Field(gt=0, le=MOST_LENGTH)]
Tokens = Annotated[int, Field(gt=0, le=MOST_TOKENS)]
Size = Annotated[int, Field(gt=0, le=MOST_SIZE)]
# Learning rates: below the least, nothing would change.
Rate = Annotated[float, Field(ge=1e-12)]


class ModelError(ValueError):
    """A model that differs from its config, or whose files cannot be fetched or read."""


@dataclass(frozen=True)
class PackagedWeights:
    """Weights inside a package of a package registry (src/assets)."""

    type: Literal["package"]
    asset: Literal["smollm2_135m", "gemma3_270m", "qwen2_5_coder_0_5b"]


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
        rope_theta: base frequency of RoPE; of full-attention layers, if sliding ones have another.
        sliding_rope_theta: base frequency of sliding layers; null if they share `rope_theta`.
        query_scalar: attention scores are divided by its square root; null means head_dim.
        norms: norms in a layer, each of the hidden size.
        qk_norm: whether queries and keys have a norm of their own: of the head size, or (`wide`)
            over all heads together.
        qkv_bias: whether q, k and v projections have a bias.
        rotary_dim: dimensions of a head that RoPE turns, the first ones; null means all.
        rope_scaling: the scaling that the model's own RoPE has; null for unscaled RoPE.
        original_window: the window before that scaling.
        attention_scale: the factor on attention scores, in place of `query_scalar` (Granite).
        logits_scale: the factor on logits (Granite).
    """

    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)]
    hidden: Size
    intermediate: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    vocabulary: Size
    rope_theta: PositiveFloat
    tied_embeddings: bool = False
    norm_eps: PositiveFloat = 1e-5
    sliding_rope_theta: PositiveFloat | None = None
    query_scalar: PositiveInt | None = None
    norms: PositiveInt = 2
    qk_norm: bool | Literal["wide"] = False
    qkv_bias: bool = False
    rotary_dim: PositiveInt | None = None
    rope_scaling: RopeScaling | None = None
    original_window: PositiveInt | None = None
    attention_scale: PositiveFloat | None = None
    logits_scale: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        if self.rotary_dim is not None and self.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary_dim={self.rotary_dim} is more than head_dim={self.head_dim}; give at most "
                "that, or null for all"
            )

    @property
    def qkv_parameters(self) -> int:
        """Weights of one layer's q, k and v projections."""
        width = self.head_dim * (self.heads + 2 * self.kv_heads)
        return width * (self.hidden + self.qkv_bias)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: attention, gated MLP and norms."""
        wide = self.head_dim * (self.heads + self.kv_heads)
        norms = self.norms * self.hidden
        norms += wide if self.qk_norm == "wide" else 2 * self.head_dim * self.qk_norm
        attention = self.qkv_parameters + self.hidden * self.head_dim * self.heads
        return attention + 3 * self.hidden * self.intermediate + norms

    @property
    def embedding_parameters(self) -> int:
        """Weights of the token embedding; a head that is not tied has as many again."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return tables + self.layers * self.layer_parameters + self.hidden

    def facts(self, windows: tuple[int | None, ...]) -> ModelFacts:
        """What objectives may know; `windows` say how far back each layer looks (None: all)."""
        return ModelFacts(
            layers=self.layers,
            windows=windows,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            scale=self.attention_scale or (self.query_scalar and self.query_scalar**-0.5),
        )


@dataclass(frozen=True)
class Tuning:
    """Values that work well on this model. Recipes read them, and may override each."""

    distill_lr: Rate
    cpt_lr: Rate
    lora_rank: Size
    lora_alpha: PositiveFloat


@dataclass(frozen=True)
class ModelConfig:
    """A model and the facts about it.

    Attributes:
        family: of src/models/families, or the `model_type` of a model without a file there.
        native_window: the length the model was trained at. It is stated here and never read from
            `max_position_embeddings`, which some checkpoints set to something else.
        sliding_window: tokens that a sliding layer sees, its own included.
        full_attention_every: with N, layers N, 2N, ... attend to all earlier tokens and the others
            slide. With null, all layers slide if there is a window.
    """

    name: Annotated[str, Field(min_length=1)]
    family: str
    native_window: Length
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
        if self.random_weights and self.shape and self.shape.vocabulary < BYTE_TOKENS:
            raise ValueError(
                f"shape.vocabulary={self.shape.vocabulary} is below the {BYTE_TOKENS} of the "
                f"byte tokenizer that random weights use; give at least {BYTE_TOKENS}"
            )
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
            _check_shape(self.shape, FAMILIES[self.family])


def _check_shape(shape: ModelShape, family: Family) -> None:
    """Refuse a shape that contradicts its family."""
    for fact in ("norms", "qk_norm", "qkv_bias"):
        stated, expected = getattr(shape, fact), getattr(family, fact)
        if stated != expected:
            raise ValueError(
                f"shape.{fact}={stated}, but {family.name} models have {expected}: state that"
            )
    if family.rope_by_layer_type != (shape.sliding_rope_theta is not None):
        has = "need one" if family.rope_by_layer_type else "have none"
        raise ValueError(
            f"shape.sliding_rope_theta={shape.sliding_rope_theta}, but {family.name} models {has}"
        )


def stated_windows(model: ModelConfig) -> tuple[int | None, ...]:
    """How far back each layer may look (None: to the start), by the model's settings."""
    assert model.shape is not None
    every, window = model.full_attention_every, model.sliding_window
    layers = range(1, model.shape.layers + 1)
    return tuple(None if every and layer % every == 0 else window for layer in layers)


def native_rope(model: ModelConfig, shape: ModelShape) -> NativeRope:
    """The facts of the model that a scaling needs."""
    family = family_of(model.family)
    return NativeRope(
        shape.rotary_dim or shape.head_dim,
        shape.rope_theta,
        model.native_window,
        family.rope_by_layer_type,
        shape.rope_scaling,
        shape.original_window,
        family.tables_only,
    )
