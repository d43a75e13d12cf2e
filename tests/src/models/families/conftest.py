"""Facts of a family against a model that transformers builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from src.models.adapters import QKV
from src.models.families import FAMILIES, Family
from src.models.families.base import parts_of
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.models.shapes import facts_of


@pytest.fixture
def check_family(compose_run: Callable[..., Any]) -> Callable[[Family, str], Any]:
    """check_family(FAMILY, "tiny_NAME") -> the network, once its modules are what is stated."""

    def check(family: Family, name: str) -> Any:
        assert FAMILIES[family.name] is family
        model = compose_run(f"model={name}").model
        assert model.family == family.name
        config = native_config(model)
        assert config.model_type == family.model_type
        assert hasattr(config, "layer_types") == family.layer_types
        nested = "full_attention" in config.rope_parameters
        assert nested == family.rope_by_layer_type
        network = load_model(model, config, dtype=torch.float32)
        facts = facts_of(config)
        for layer in network.get_decoder().layers:  # type: ignore[union-attr]
            modules = dict(layer.named_modules())
            attention = modules["self_attn"]
            if family.parts:
                assert {child for child, _ in layer.named_children()} == parts_of(family.parts)
                attention = modules[family.parts.attention]
                assert hasattr(attention, family.parts.output)
            linear = {n.rpartition(".")[2] for n, m in modules.items() if hasattr(m, "in_features")}
            assert linear == set(family.projections)
            assert sum("layernorm" in n for n in modules) == family.norms
            for norm, heads in (("q_norm", facts.heads), ("k_norm", facts.kv_heads)):
                assert hasattr(attention, norm) == bool(family.qk_norm)
                if family.qk_norm:
                    width = facts.head_dim * (heads if family.qk_norm == "wide" else 1)
                    assert getattr(attention, norm).weight.shape == (width,)
            for projection in {family.fused.get(p, p) for p in QKV}:
                assert (getattr(attention, projection).bias is not None) == family.qkv_bias
            assert attention.scaling == pytest.approx(facts.scale or facts.head_dim**-0.5)
        return network

    return check
