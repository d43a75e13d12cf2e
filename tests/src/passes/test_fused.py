"""Fused kernels compute what transformers' modules do; only a model that is fused is changed."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from src.models.families import FAMILIES
from src.passes.fused import fuse, fused
from tests.conftest import by_default
from tests.interpreted import liger_kernels

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 61,
    "max_position_embeddings": 128,
}
LLAMA_LIKE = [name for name, family in FAMILIES.items() if family.llama_operators]


def network(family: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(FAMILIES[family].model_type, **SIZES)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    for name, parameter in made.named_parameters():
        if "norm" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return made.to(device, dtype)


def test_gemmas_norms_and_gates_are_others() -> None:
    assert not FAMILIES["gemma3"].llama_operators
    assert {"llama", "mistral", "qwen2", "qwen3"} <= set(LLAMA_LIKE)


@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_every_norm_gate_and_rotation_is_replaced_in_this_model_alone(family: str) -> None:
    fused, other = (network(family, torch.float32, "cpu") for _ in range(2))
    decoder = fused.get_decoder()
    fuse(decoder)
    replaced = [name for name, m in decoder.named_modules() if "forward" in vars(m)]
    norms = [name for name, m in decoder.named_modules() if "Norm" in type(m).__name__]
    assert set(norms) <= set(replaced)
    for layer in range(2):
        assert {f"layers.{layer}.mlp", f"layers.{layer}.self_attn"} <= set(replaced)
    assert not [m for m in other.modules() if "forward" in vars(m)]
    attention = decoder.layers[0].self_attn
    rotate = attention.forward.__func__.__globals__["apply_rotary_pos_emb"]
    assert rotate is not type(attention).forward.__globals__["apply_rotary_pos_emb"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_logits_and_gradients_are_as_near_to_float64_as_those_of_plain_modules(family: str) -> None:
    ids_bt = torch.randint(0, 61, (2, 63), generator=torch.Generator().manual_seed(2)).cuda()

    def run(made: PreTrainedModel) -> list[torch.Tensor]:
        logits = made(input_ids=ids_bt).logits
        weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).cuda()
        (logits.double() * weight).sum().backward()
        return [logits.detach().double(), *(p.grad.double() for p in made.parameters())]

    exact = run(network(family, torch.float64, "cuda"))
    for dtype in (torch.float32, torch.bfloat16):
        plain = run(network(family, dtype, "cuda"))
        made = network(family, dtype, "cuda")
        fuse(made.get_decoder())
        for truth, one, two in zip(exact, plain, run(made), strict=True):
            size = truth.norm()
            assert (two - truth).norm() <= 2 * (one - truth).norm() + 1e-5 * size


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is interpreted on a CPU only")
@pytest.mark.parametrize("family", LLAMA_LIKE)
@by_default(lambda family: family == "qwen3")
def test_logits_are_those_of_plain_modules_and_a_model_is_fused_for_a_while(family: str) -> None:
    made = network(family, torch.float32, "cpu")
    ids_bt = torch.randint(0, 61, (2, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = made(input_ids=ids_bt).logits
        with liger_kernels(), fused(made.get_decoder()):
            torch.testing.assert_close(made(input_ids=ids_bt).logits, plain, rtol=1e-5, atol=1e-5)
    assert not [m for m in made.modules() if "forward" in vars(m)]


def test_what_wraps_a_module_stays_when_it_is_fused_no_more() -> None:
    made = network("llama", torch.float32, "cpu")
    norm = made.get_decoder().norm
    norm.forward = wrapping = lambda x: x
    with fused(made.get_decoder()):
        assert norm.forward is not wrapping
    assert norm.forward is wrapping
