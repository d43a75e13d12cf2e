"""The preparation of a decoder before an engine takes it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from src.passes.fused import fuse
from src.passes.layer_pass import show_layer_inputs
from src.passes.skipping import skip_unwanted


def prepare_decoder(
    decoder: nn.Module, ends: Collection[int | None], *, compiled: bool = False, fused: bool = False
) -> None:
    """Let passes see layer inputs and skip unwanted work; fuse or compile the layers if asked for.

    Args:
        ends: layers that passes may stop at; None for passes that run to the end.
    """
    if fused:
        fuse(decoder)
    if compiled:
        layers: Any = getattr(decoder, "layers", ())
        for index, layer in enumerate(layers):
            # The captured attention is not traced (src/passes/capture.py), so a layer is compiled
            # in two parts, before and after it. Where a pass may stop, it is not compiled.
            if index not in ends:
                layer.forward = torch.compile(layer.forward, dynamic=False)
    skip_unwanted(decoder, ends)
    show_layer_inputs(decoder)
