"""Fused kernels of Liger-Kernel (2410.10989) for what lies between a layer's matrix products.

RMSNorm, RoPE and the gated activation are several elementwise kernels each in transformers' code,
and each reads and writes whole activations. One kernel each reads and writes them once. The
formulas are those of LLaMA's code; only models of families that share them are fused
(`Family.llama_operators`).
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from src.passes.skipping import known_parts, own_forward


def fuse(decoder: nn.Module) -> None:
    """Let the norms, RoPE and gated activations of all layers run as fused kernels.

    Call it before anything else wraps the layers' modules. They are those of a listed family.
    """
    parts, layers = known_parts(decoder), cast("Any", decoder).layers
    assert parts is not None
    for layer in layers:
        _fuse_rope(layer.get_submodule(parts.attention))
        _fuse_mlp(layer.mlp)
    for module in decoder.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _fuse_norm(module)


@contextmanager
def fused(decoder: nn.Module) -> Iterator[None]:
    """Inside the block, the layers of a listed family run as `fuse` makes them."""
    with own_forward(*decoder.modules()):
        fuse(decoder)
        yield


def _fuse_norm(module: Any) -> None:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def forward(x: Tensor) -> Tensor:
        # Not in place: the gradient that comes in may belong to the residual stream as well.
        return LigerRMSNormFunction.apply(
            x, module.weight, module.variance_epsilon, 0.0, "llama", False
        )

    module.forward = forward


def _fuse_mlp(module: Any) -> None:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def forward(x: Tensor) -> Tensor:
        activated: Any = LigerSiLUMulFunction.apply(module.gate_proj(x), module.up_proj(x))
        return module.down_proj(activated)

    module.forward = forward


def _fuse_rope(attention: Any) -> None:
    """Give one attention module a forward whose `apply_rotary_pos_emb` is the fused one.

    transformers' modules call that function by its global name. The copy of `forward` has globals
    of its own, so that no other model is changed.
    """
    ordinary = type(attention).forward
    replaced = types.FunctionType(
        ordinary.__code__,
        {**ordinary.__globals__, "apply_rotary_pos_emb": _rotate},
        ordinary.__name__,
        ordinary.__defaults__,
        ordinary.__closure__,
    )
    replaced.__kwdefaults__ = ordinary.__kwdefaults__
    attention.forward = types.MethodType(replaced, attention)


def _rotate(
    q_bhtd: Tensor, k_bgtd: Tensor, cos_btd: Tensor, sin_btd: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    from liger_kernel.ops.rope import LigerRopeFunction

    # The other arguments are the axis to broadcast over, always that of the heads.
    return LigerRopeFunction.apply(q_bhtd, k_bgtd, cos_btd, sin_btd)
