"""What is trained: adapters or everything, the same from the same seed, merged without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from src.models.adapters import (
    FullParameters,
    LoraParameters,
    ParametersError,
    QkvParameters,
    causal_model,
    load_trained,
    make_trainable,
    merged,
)

HIDDEN, QUERIES, KEYS, LAYERS, RANK = 24, 24, 12, 2, 3
LORA = LoraParameters("lora", RANK, 6.0, 0.0, ("q_proj", "k_proj", "v_proj"))
IDS = torch.arange(30).reshape(2, 15)


def network(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=61,
                hidden_size=HIDDEN,
                intermediate_size=32,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                num_key_value_heads=2,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    model.to(dtype)  # type: ignore[arg-type]  # transformers narrows nn.Module.to
    return model.eval()


def adapted(
    seed: int = 1, parameters: LoraParameters = LORA, *, trained: bool = False
) -> nn.Module:
    """A network with adapters; `trained` moves all of their weights away from where they start."""
    model = make_trainable(network(), parameters, seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(0.2 * noise)
    return model.eval()


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_only_adapters_are_trained_and_they_have_the_rank() -> None:
    model = adapted()
    trained = trainable(model)
    assert trained
    assert all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "k_proj", "v_proj"}
    expected = LAYERS * RANK * ((HIDDEN + QUERIES) + 2 * (HIDDEN + KEYS))
    assert sum(p.numel() for p in trained.values()) == expected


def test_only_named_projections_get_adapters() -> None:
    model = adapted(parameters=LoraParameters("lora", RANK, 6.0, 0.0, ("down_proj",)))
    assert {name.split(".")[-4] for name in trainable(model)} == {"down_proj"}


def test_untrained_adapters_change_nothing_and_gradients_reach_them_alone() -> None:
    model = adapted()
    torch.testing.assert_close(logits(model), logits(network()), rtol=0, atol=0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trainable(model).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_take_the_networks_dtype(dtype: torch.dtype) -> None:
    model = make_trainable(network(dtype), LORA, seed=1)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(input_ids=IDS).logits.dtype == dtype


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout_and_scale_are_those_asked_for(dropout: float) -> None:
    model = adapted(parameters=LoraParameters("lora", 4, 10.0, dropout, ("q_proj",)))
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "lora_A")]
    assert len(layers) == LAYERS
    for layer in layers:
        assert layer.scaling["default"] == 10.0 / 4
        assert getattr(layer.lora_dropout["default"], "p", 0.0) == dropout


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_the_scale_of_rslora_is_by_the_ranks_root(rslora: bool) -> None:
    lora = LoraParameters("lora", 4, 10.0, 0.0, ("q_proj",), use_rslora=rslora)
    layers: list[Any] = [m for m in adapted(parameters=lora).modules() if hasattr(m, "lora_A")]
    assert {layer.scaling["default"] for layer in layers} == {10.0 / (2 if rslora else 4)}


def test_dora_trains_a_magnitude_for_each_output_and_starts_as_it_was() -> None:
    lora = LoraParameters("lora", RANK, 6.0, 0.0, ("q_proj", "k_proj"), use_dora=True)
    model = adapted(parameters=lora)
    magnitudes = {n: p for n, p in trainable(model).items() if "magnitude" in n}
    assert sorted(p.numel() for p in magnitudes.values()) == [KEYS] * LAYERS + [QUERIES] * LAYERS
    torch.testing.assert_close(logits(model), logits(network()), rtol=1e-5, atol=1e-6)
    model(input_ids=IDS, labels=IDS).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trainable(model).keys()


@pytest.mark.parametrize("frozen", [False, True])
def test_qkv_are_trained_whole_and_nothing_else(frozen: bool) -> None:
    model = network().requires_grad_(not frozen)
    trained = make_trainable(model, QkvParameters("qkv"), seed=1)
    assert trained is model
    names = trainable(trained)
    assert len(names) == 3 * LAYERS
    assert {name.split(".")[-2] for name in names} == {"q_proj", "k_proj", "v_proj"}
    torch.testing.assert_close(logits(trained), logits(network()), rtol=0, atol=0)
    assert merged(trained) is model


def test_qkv_of_a_model_without_them_is_refused() -> None:
    model = network()
    for layer in model.model.layers:
        layer.self_attn.query_proj = layer.self_attn.q_proj
        del layer.self_attn.q_proj
    with pytest.raises(ParametersError, match=r"type=qkv trains \['q_proj'\], which .* query_proj"):
        make_trainable(model, QkvParameters("qkv"), seed=1)


def test_a_seed_decides_how_adapters_start() -> None:
    one, same, other = (trainable(adapted(seed)) for seed in (5, 5, 6))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_global_random_state_is_left_alone() -> None:
    model = network()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    make_trainable(model, LORA, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("projections", [("query",), ("q_proj", "w_proj")], ids=str)
def test_unknown_projections_are_refused_with_those_there_are(projections: tuple) -> None:
    lora = LoraParameters("lora", RANK, 6.0, 0.0, projections)
    with pytest.raises(ValueError, match="which this model lacks") as caught:
        make_trainable(network(), lora, seed=1)
    assert repr(projections[-1]) in str(caught.value)
    assert "'q_proj'" not in str(caught.value), "only what is wrong is blamed"
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(caught.value)


def test_full_parameters_are_all_trained_also_after_a_freeze() -> None:
    model = network().requires_grad_(False)
    trained = make_trainable(model, FullParameters("full"), seed=1)
    assert trained is model
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_the_model_inside_is_found(full: bool) -> None:
    parameters = FullParameters("full") if full else LORA
    inside = causal_model(make_trainable(network(), parameters, seed=1))
    assert isinstance(inside, LlamaForCausalLM)


def test_trained_parameters_make_an_equal_network() -> None:
    source, target = adapted(1, trained=True), adapted(2)
    assert not torch.equal(logits(source), logits(target))
    load_trained(target, trainable(source))
    torch.testing.assert_close(logits(target), logits(source), rtol=0, atol=0)
    assert all(p.requires_grad == ("lora_" in n) for n, p in target.named_parameters())


def test_trained_parameters_are_rounded_to_the_networks_dtype() -> None:
    source = adapted(1, trained=True)
    target = make_trainable(network(torch.bfloat16), LORA, seed=2)
    load_trained(target, trainable(source))
    rounded = {name: value.to(torch.bfloat16) for name, value in trainable(source).items()}
    torch.testing.assert_close(trainable(target), rounded, rtol=0, atol=0)


def dropped(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(given.items())[1:])


def added(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given | {"base_model.model.lm_head.weight": torch.zeros(61, HIDDEN)}


def renamed(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("q_proj", "o_proj"): value for name, value in given.items()}


@pytest.mark.parametrize("change", [dropped, added, renamed], ids=lambda f: f.__name__)
def test_names_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    target = adapted(2)
    before = trainable(target)
    with pytest.raises(ValueError, match=r"do not fit the network; first differences: \["):
        load_trained(target, change(trainable(adapted(1, trained=True))))
    torch.testing.assert_close(trainable(target), before, rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 2, RANK + 1])
def test_shapes_that_do_not_fit_are_refused(rank: int) -> None:
    """Rank 1 must not spread over the others by broadcasting."""
    other = LoraParameters("lora", rank, 6.0, 0.0, LORA.projections)
    target = adapted(2)
    with pytest.raises(ValueError, match="do not fit the network"):
        load_trained(target, trainable(adapted(1, other, trained=True)))


def test_merging_keeps_what_the_adapters_do() -> None:
    model = adapted(trained=True)
    before = logits(model)
    assert (before - logits(network())).abs().max() > 1e-2, "the adapters do nothing"
    whole = merged(model)
    assert isinstance(whole, LlamaForCausalLM)
    assert whole.state_dict().keys() == network().state_dict().keys()
    torch.testing.assert_close(logits(whole), before, rtol=1e-5, atol=1e-5)


def test_a_network_without_adapters_is_merged_already() -> None:
    model = network()
    assert merged(model) is model
