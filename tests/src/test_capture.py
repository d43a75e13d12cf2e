"""Captured q, k, v are what the model's own attention used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.adapters import LoraParameters, causal_model, make_trainable
from src.capture import CaptureError, QKVCapture, attention_name, attention_output


def network(
    implementation: str = "captured_sdpa", *, kv_heads: int = 2, family: str = "llama", **extra
):
    config = AutoConfig.for_model(
        family,
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **extra,
    )
    attention_name(implementation.removeprefix("captured_"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return model.eval()


@contextmanager
def own_outputs(name: str) -> Iterator[dict[int, torch.Tensor]]:
    """What the registered attention function returned, by layer, [b, h, t, d]."""
    outputs: dict[int, torch.Tensor] = {}
    inner = ALL_ATTENTION_FUNCTIONS[name]

    def watched(module, *args, **kwargs):
        result = inner(module, *args, **kwargs)
        outputs[module.layer_idx] = result[0].transpose(1, 2)
        return result

    ALL_ATTENTION_FUNCTIONS[name] = watched
    try:
        yield outputs
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = inner


@pytest.mark.parametrize("implementation", ["captured_sdpa", "captured_eager"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 7, 33])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_attention_from_captured_tensors_is_the_models_own(
    implementation: str, kv_heads: int, tokens: int, lora: bool
) -> None:
    model = network(implementation, kv_heads=kv_heads)
    if lora:
        parameters = LoraParameters("lora", 4, 8.0, 0.0, ("q_proj", "k_proj", "v_proj"))
        model = make_trainable(model, parameters, seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(0, 97, (2, tokens))
    capture = QKVCapture(range(3))
    with own_outputs(implementation) as own, capture.recording():
        causal_model(model).get_decoder()(input_ids=ids, use_cache=False)
    taken = capture.take()
    assert taken.keys() == own.keys() == {0, 1, 2}
    for layer, qkv in taken.items():
        assert qkv.q_bhtd.shape == (2, 4, tokens, 8)
        assert qkv.k_bgtd.shape == qkv.v_bgtd.shape == (2, kv_heads, tokens, 8)
        torch.testing.assert_close(attention_output(qkv), own[layer], rtol=1e-5, atol=1e-6)


def test_outputs_are_those_of_the_ordinary_attention_also_with_padding() -> None:
    plain, captured = network("sdpa"), network("captured_sdpa")
    ids = torch.randint(0, 97, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad(), QKVCapture([0]).recording():
        ours = captured(input_ids=ids, attention_mask=mask).logits
    theirs = plain(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()])


def test_no_mask_is_built_for_whole_blocks() -> None:
    model = network()
    masks = []
    inner = ALL_ATTENTION_FUNCTIONS["captured_sdpa"]
    ALL_ATTENTION_FUNCTIONS["captured_sdpa"] = lambda m, q, k, v, mask, **kw: (
        masks.append(mask),
        inner(m, q, k, v, mask, **kw),
    )[1]
    try:
        model(input_ids=torch.randint(0, 97, (1, 16)), use_cache=False)
    finally:
        ALL_ATTENTION_FUNCTIONS["captured_sdpa"] = inner
    assert masks == [None, None, None]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
def test_gradients_through_captured_tensors(checkpointing: bool) -> None:
    def gradients(on: bool) -> list[torch.Tensor]:
        model = network().train()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        capture = QKVCapture([0, 2])
        ids = torch.arange(24).reshape(1, 24)
        with capture.recording():
            model.get_decoder()(input_ids=ids, use_cache=False)
        loss = sum(
            (x.square().sum() for qkv in capture.take().values() for x in qkv), torch.zeros(())
        )
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for ours, theirs in zip(gradients(checkpointing), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_wanted_layers_are_kept_and_only_inside_the_block() -> None:
    model = network()
    ids = torch.randint(0, 97, (1, 5))
    capture = QKVCapture([1])
    with capture.recording():
        model(input_ids=ids, use_cache=False)
    model(input_ids=ids, use_cache=False)
    assert capture.take().keys() == {1}
    assert capture.take() == {}, "taken tensors must not be kept alive"


def test_a_second_forward_inside_the_block_is_an_error() -> None:
    model = network()
    ids = torch.randint(0, 97, (1, 5))
    with QKVCapture([0]).recording():
        model(input_ids=ids)
        with pytest.raises(CaptureError, match="layer 0 was captured twice"):
            model(input_ids=ids)


def test_a_layer_that_is_not_captured_is_an_error() -> None:
    model = network("sdpa")
    ids = torch.randint(0, 97, (1, 5))
    missing = pytest.raises(CaptureError, match=r"layers \[0, 2\] gave no q, k, v")
    with missing, QKVCapture([0, 2]).recording():
        model(input_ids=ids)


def test_captures_do_not_nest() -> None:
    nested = pytest.raises(CaptureError, match="do not nest")
    with QKVCapture([]).recording(), nested, QKVCapture([]).recording():
        pass


def test_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'flex' is not one of sdpa, eager"):
        attention_name("flex")
