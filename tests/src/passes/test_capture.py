"""Captured q, k, v are what the model's own attention used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.assets import fetching
from src.assets.cache import cache_dir
from src.assets.pins import AssetError
from src.models.adapters import LoraParameters, causal_model, make_trainable
from src.models.config import ModelConfig
from src.models.facts import ModelFacts
from src.models.hf_config import scaled_config
from src.models.loading import load_model, load_tokenizer
from src.models.rope.yarn import YarnScaling
from src.models.shapes import facts_of
from src.models.sources import check_available
from src.objectives.base import QKV
from src.passes import capture
from src.passes.capture import QKVCapture, attention_name
from src.passes.layer_pass import CaptureError, LayerPass
from tests.conftest import by_default
from tests.src.passes.recomputed import attention_output

# Gate and up together: some families compute them in one layer.
QKV_AND_MLP = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


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
    with own_outputs(implementation) as own, capture.running():
        causal_model(model).get_decoder()(input_ids=ids, use_cache=False)
    taken = capture.take()
    assert taken.keys() == own.keys() == {0, 1, 2}
    for layer, qkv in taken.items():
        assert qkv.q_bhtd.shape == (2, 4, tokens, 8)
        assert qkv.k_bgtd.shape == qkv.v_bgtd.shape == (2, kv_heads, tokens, 8)
        torch.testing.assert_close(attention_output(qkv), own[layer], rtol=1e-5, atol=1e-6)


CONF = Path(__file__).resolve().parents[3] / "conf" / "model"
# One for each family.
FAMILIES = sorted(p.stem for p in CONF.glob("tiny*.yaml"))
TOKENS = 21


def of_family(
    compose_run: Callable[..., Any],
    name: str,
    *,
    lora: bool = False,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float64,
) -> tuple[nn.Module, ModelFacts]:
    """A family's tiny model, extended, with a window that binds and biases and norms that count."""
    model = compose_run(f"model={name}").model
    window = 5 if model.sliding_window else None
    every = 3 if model.full_attention_every else None
    model = replace(
        model,
        sliding_window=window,
        full_attention_every=every,
        attention=attention,
        shape=replace(model.shape, layers=3),
    )
    config = scaled_config(model, YarnScaling("yarn", 32_768))
    network = load_model(model, config, dtype=dtype, capture=True)
    draw = torch.Generator().manual_seed(4)
    for parameter_name, parameter in network.named_parameters():
        if "norm" in parameter_name or "bias" in parameter_name:
            noise = torch.randn(parameter.shape, generator=draw, dtype=dtype)
            parameter.data.add_(0.3 * noise)
    facts = facts_of(config)
    if not lora:
        return network, facts
    parameters = LoraParameters("lora", 4, 8.0, 0.0, QKV_AND_MLP)
    adapted = make_trainable(network, parameters, seed=1)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.2, generator=draw)
    return adapted, facts


def padding(side: str) -> torch.Tensor | None:
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    if side == "none":
        return None
    mask[1, :8] = 0
    return mask if side == "left" else mask.flip(1)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("side", ["none", "left", "right"])
# Each two of the settings in every combination.
@by_default(
    lambda attention, checkpointing, lora, side: (
        checkpointing == ((attention == "eager") != (side == "left"))
        and lora == ((attention == "eager") != (side == "right"))
    )
)
def test_attention_of_every_family_is_recomputed_from_its_captured_tensors(
    compose_run: Callable[..., Any],
    name: str,
    attention: str,
    checkpointing: bool,
    lora: bool,
    side: str,
) -> None:
    # Eager attention takes its softmax in float32 and has masks that are infinite there.
    dtype, close = torch.float32, {"rtol": 1e-4, "atol": 1e-5}
    if attention == "sdpa":
        dtype, close = torch.float64, {"rtol": 1e-9, "atol": 1e-11}
    made, facts = of_family(compose_run, name, lora=lora, attention=attention, dtype=dtype)
    network = causal_model(made)
    if checkpointing:
        made.train()
        network.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 256, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = padding(side)
    inputs: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(network.get_decoder().layers):
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args, index=index: inputs.__setitem__(index, args[0])
        )
    capture = QKVCapture(range(facts.layers))
    with capture.running():
        network.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    real = torch.ones(2, TOKENS, dtype=torch.bool) if mask is None else mask.bool()
    taken = capture.take()
    assert taken.keys() == set(range(facts.layers))
    for layer, qkv in taken.items():
        ours_bhtd = attention_output(
            qkv, scale=facts.scale, window=facts.windows[layer], key_mask_bt=mask
        )
        ours_bth = ours_bhtd.transpose(1, 2).flatten(2)
        # Rows of padding are whatever the model makes of them.
        torch.testing.assert_close(ours_bth[real], inputs[layer][real], **close)
    if "mistral" in name or "gemma3" in name:
        assert 5 in facts.windows
        whole = attention_output(taken[0], scale=facts.scale, key_mask_bt=mask)
        seen = whole.transpose(1, 2).flatten(2)[real]
        assert not torch.allclose(seen, inputs[0][real], rtol=1e-3), "the window does not bind"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", ["none", "left"])
def test_sdpa_and_eager_capture_the_same(
    compose_run: Callable[..., Any], name: str, side: str
) -> None:
    ids = torch.randint(0, 256, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    mask, taken = padding(side), []
    for attention in ("sdpa", "eager"):
        network, facts = of_family(compose_run, name, attention=attention, dtype=torch.float32)
        capture = QKVCapture(range(facts.layers))
        with capture.running():
            causal_model(network)(input_ids=ids, attention_mask=mask, use_cache=False)
        taken.append(capture.take())
    real = torch.ones(2, TOKENS, dtype=torch.bool) if mask is None else mask.bool()
    for layer in range(facts.layers):
        for ours, theirs in zip(taken[0][layer][:3], taken[1][layer][:3], strict=True):
            ours, theirs = ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


PASSAGE = """The harbour was quiet when the first boats came in. A few men stood on the quay with
their hands in their pockets and watched the nets being lifted out, and nobody said very much,
because everyone could see that the catch was poor. """


class Watched:
    """A real model, and what its layers hand to their output projections."""

    def __init__(self, model: ModelConfig, attention: str) -> None:
        scaling = YarnScaling("yarn", 4 * model.native_window)
        self.network: Any = load_model(
            replace(model, attention=attention),
            scaled_config(model, scaling),
            dtype=torch.float32,
            capture=True,
        )
        self.facts = facts_of(self.network.config)
        self.inputs: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(self.network.get_decoder().layers):
            layer.self_attn.o_proj.register_forward_pre_hook(self._noting(index))

    def _noting(self, index: int) -> Callable[..., None]:
        return lambda module, args: self.inputs.__setitem__(index, args[0].detach())

    def adapt(self) -> None:
        lora = LoraParameters("lora", 4, 8.0, 0.0, ("q_proj", "k_proj", "v_proj"))
        self.network = make_trainable(self.network, lora, seed=1)
        for name, parameter in self.network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)

    def checked(self, ids: torch.Tensor, padding: torch.Tensor | None = None) -> dict[int, QKV]:
        """The captured tensors. Errors are relative to a layer's largest number."""
        capture = QKVCapture(range(self.facts.layers))
        with capture.running():
            decoder = causal_model(self.network).get_decoder()
            decoder(input_ids=ids, attention_mask=padding, use_cache=False)
        real = torch.ones_like(ids).bool() if padding is None else padding.bool()
        taken = capture.take()
        for layer, qkv in taken.items():
            ours = attention_output(
                QKV(*(x.detach() for x in qkv[:3])),
                scale=self.facts.scale,
                window=self.facts.windows[layer],
                key_mask_bt=padding,
            )
            ours = ours.transpose(1, 2).flatten(2)[real]
            error = (ours - self.inputs[layer][real]).abs().max() / ours.abs().max()
            assert error < 1e-4, f"layer {layer}: {error}"
        return taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("smollm2_135m", 48),
        pytest.param("gemma3_270m", 560, marks=pytest.mark.thorough),  # 260 MB to fetch
        pytest.param("qwen2_5_coder_0_5b", 48, marks=pytest.mark.thorough),  # 490 MB
    ],
)
def test_attention_of_real_models_is_recomputed_from_their_captured_tensors(
    compose_run: Callable[..., Any], name: str, tokens: int
) -> None:
    """Gemma's text is longer than its window; Qwen has biases, and 7 heads to a key-value head."""
    if not (cache_dir() / "models" / name).is_dir():
        try:
            fetching.fetch(name)
        except AssetError as error:
            pytest.skip(f"{name} is not to be had: {error}")
    model = compose_run(f"model={name}").model
    check_available(model)
    text = load_tokenizer(model)(PASSAGE * 12).input_ids[:tokens]
    ids = torch.tensor([text, text[::-1]])
    mask = torch.ones_like(ids)
    mask[1, : tokens // 3] = 0
    plain: list[dict[int, QKV]] = []
    for attention in ("sdpa", "eager"):
        watched = Watched(model, attention)
        with torch.no_grad():
            plain.append(watched.checked(ids))
            watched.checked(ids, mask)
            watched.adapt()
            watched.checked(ids, mask)
        watched.network.train()
        inside = causal_model(watched.network)
        inside.gradient_checkpointing_enable({"use_reentrant": False})
        watched.checked(ids, mask)
    for layer, qkv in plain[0].items():
        for ours, theirs in zip(qkv[:3], plain[1][layer][:3], strict=True):
            assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-3


def test_outputs_are_those_of_the_ordinary_attention_also_with_padding() -> None:
    plain, captured = network("sdpa"), network("captured_sdpa")
    ids = torch.randint(0, 97, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad(), QKVCapture([0]).running():
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
        with capture.running():
            model.get_decoder()(input_ids=ids, use_cache=False)
        loss = sum(
            (x.square().sum() for qkv in capture.take().values() for x in qkv[:3]),
            torch.zeros(()),
        )
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for ours, theirs in zip(gradients(checkpointing), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_wanted_layers_are_kept_and_only_inside_the_block() -> None:
    model = network()
    ids = torch.randint(0, 97, (1, 5))
    capture = QKVCapture([1])
    with capture.running():
        model(input_ids=ids, use_cache=False)
    model(input_ids=ids, use_cache=False)
    assert capture.take().keys() == {1}
    assert capture.take() == {}, "taken tensors must not be kept alive"


def test_a_second_forward_inside_the_block_is_an_error() -> None:
    model = network()
    ids = torch.randint(0, 97, (1, 5))
    with QKVCapture([0]).running():
        model(input_ids=ids)
        with pytest.raises(CaptureError, match="layer 0 was captured twice"):
            model(input_ids=ids)


def test_a_layer_that_is_not_captured_is_an_error() -> None:
    model = network("sdpa")
    ids = torch.randint(0, 97, (1, 5))
    missing = pytest.raises(CaptureError, match=r"layers \[0, 2\] gave no q, k, v")
    with missing, QKVCapture([0, 2]).running():
        model(input_ids=ids)


def test_captures_do_not_nest() -> None:
    nested = pytest.raises(CaptureError, match="do not nest")
    with QKVCapture([]).running(), nested, QKVCapture([]).running():
        pass


@pytest.mark.parametrize("unpadded", [True, False])
def test_rows_of_one_text_need_no_mask(unpadded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers would make of padding is not looked for, unless there may be some."""
    asked: list[dict[str, object]] = []
    masking = capture._masking(lambda **settings: asked.append(settings))
    layer_pass = LayerPass((), lambda *args, **kwargs: None, unpadded=unpadded)
    with layer_pass.running():
        for window in (None, 8, 4):
            masking(kv_length=8, local_size=window, attention_mask="given")
    windows = [settings["local_size"] for settings in asked]
    assert windows == ([4] if unpadded else [None, 8, 4])
    asked.clear()
    masking(kv_length=8)
    assert len(asked) == 1
