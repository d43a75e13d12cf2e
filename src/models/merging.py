"""Merging of a trained model with the native one: a weighted mean of their weights.

Weight averaging keeps what both models can do where fine-tuning has moved weights little (Wortsman
et al., 2203.05482, and for a model with its fine-tuned self 2109.01903). It reads no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class MergeConfig:
    """A stage that merges the model of the stage before it with the native model.

    Each weight becomes share * trained + (1 - share) * native. The RoPE scaling stays.

    Attributes:
        merge: `linear` has one share for all weights, `by_layer` shares by depth.
        weight: the trained model's share, for `linear`.
        layers: the trained model's shares at evenly spaced depths, from the first layer to the
            last, for `by_layer`. Layers between them have interpolated shares, so two numbers make
            a ramp, and as many as layers set each. The embedding has the first layer's share; the
            final norm and an output head of its own have the last one's.
    """

    merge: Literal["linear", "by_layer"]
    weight: Share | None = None
    layers: Annotated[tuple[Share, ...], Field(min_length=2)] | None = None

    def __post_init__(self) -> None:
        settings = {name for name in ("weight", "layers") if getattr(self, name) is not None}
        needed = "weight" if self.merge == "linear" else "layers"
        if settings != {needed}:
            has = f"has {' and '.join(sorted(settings))}" if settings else "has no share"
            raise ValueError(
                f"merge={self.merge} {has}: give {needed} alone (linear takes weight, one share; "
                "by_layer takes layers, two shares or more; shares are in [0, 1])"
            )

    def shares(self, layers: int) -> list[float]:
        """The trained model's share in each layer.

        Raises:
            ValueError: there are more shares than layers.
        """
        if self.layers is None:
            assert self.weight is not None
            return [self.weight] * layers
        if len(self.layers) > layers:
            raise ValueError(
                f"layers has {len(self.layers)} shares, and the model {layers} layers: give at "
                f"most {layers}"
            )
        depths = np.linspace(0, layers - 1, len(self.layers))
        return np.interp(np.arange(layers), depths, self.layers).tolist()

    def __str__(self) -> str:
        if self.layers is None:
            return f"{self.weight:g} of the trained weights and {1 - (self.weight or 0):g} native"
        return f"{' ... '.join(f'{s:g}' for s in self.layers)} of the trained weights by layer"


def merge_into(trained: PreTrainedModel, native: PreTrainedModel, merge: MergeConfig) -> None:
    """Merge the native model's weights into the trained model's, in place: models of one kind."""
    import torch

    others = dict(native.named_parameters())
    shares = _shares(trained, merge)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            weight.copy_(others[name].lerp(weight, shares[name]))


def _shares(network: PreTrainedModel, merge: MergeConfig) -> dict[str, float]:
    """The trained model's share in each parameter, by name."""
    decoder: Any = network.get_decoder()
    layers = list(decoder.layers)
    by_layer = merge.shares(len(layers))
    depths = {
        id(weight): share
        for layer, share in zip(layers, by_layer, strict=True)
        for weight in layer.parameters()
    }
    depths |= {id(weight): by_layer[0] for weight in network.get_input_embeddings().parameters()}
    return {name: depths.get(id(w), by_layer[-1]) for name, w in network.named_parameters()}
