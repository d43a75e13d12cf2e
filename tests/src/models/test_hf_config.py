"""A model's config, native and scaled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from src.models.config import ModelConfig, ModelError, stated_windows
from src.models.hf_config import _KNOWN_TYPES, native_config, planned_facts, scaled_config
from src.models.loading import load_model
from src.models.rope import BaseFrequencyScaling, LinearScaling, NativeRope
from src.models.rope.longrope import LongRopeScaling
from src.models.shapes import attention_windows, facts_of, shape_of
from src.planning import plan
from src.settings.strict import ConfigError
from tests.src.models.examples import (
    ABF,
    LINEAR,
    TINY,
    ComposeRun,
    logits,
    rotations,
    saved_as,
)


def test_a_scaling_that_transformers_cannot_load_is_refused(tiny: ModelConfig) -> None:
    assert set(_KNOWN_TYPES) == {"default", *ROPE_INIT_FUNCTIONS}

    class OwnScaling(LinearScaling):
        def rope_parameters(self, native: NativeRope) -> dict[str, Any]:
            return super().rope_parameters(native) | {"rope_type": "own_kind"}

    with pytest.raises(ModelError, match=r"^rope\.type=linear: .* 'own_kind', which transformers"):
        scaled_config(tiny, OwnScaling("linear", LINEAR.target_length))


@pytest.mark.parametrize("scaling", [LINEAR, ABF], ids=lambda s: s.type)
def test_student_and_teacher_differ_in_rope_only(
    tiny: ModelConfig, scaling: LinearScaling | BaseFrequencyScaling
) -> None:
    native, scaled = native_config(tiny), scaled_config(tiny, scaling)
    changed = {
        key: value for key, value in scaled.to_dict().items() if native.to_dict()[key] != value
    }
    assert changed.keys() == {"rope_parameters", "max_position_embeddings"}
    rope = NativeRope(8, 10_000.0, 8192)
    assert changed["rope_parameters"] == scaling.rope_parameters(rope)
    assert changed["max_position_embeddings"] == 32_768

    teacher = load_model(tiny, native, dtype=torch.float32)
    student = load_model(tiny, scaled, dtype=torch.float32)
    torch.testing.assert_close(student.state_dict(), teacher.state_dict(), rtol=0, atol=0)
    assert not torch.equal(logits(student), logits(teacher))
    frequencies = scaling.inverse_frequencies(rope)
    np.testing.assert_allclose(rotations(student), frequencies, rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 4.0, 8.0, 2.5])
def test_scaling_survives_save_and_load(tiny: ModelConfig, tmp_path: Path, factor: float) -> None:
    scaling = LinearScaling("linear", target_length=32_768, factor=factor)
    config = scaled_config(tiny, scaling)
    network = load_model(tiny, config, dtype=torch.float32)
    network.save_pretrained(tmp_path)

    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["rope_parameters"] == {
        "rope_type": "linear",
        "factor": factor,
        "rope_theta": 10_000.0,
    }
    assert written["max_position_embeddings"] == 32_768
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert rotations(loaded)[0] == pytest.approx(1 / factor)
    torch.testing.assert_close(logits(loaded), logits(network))


@pytest.mark.parametrize("name", TINY)
def test_what_is_stated_of_a_family_is_what_its_config_says(
    compose_run: ComposeRun, name: str
) -> None:
    model = compose_run(f"model={name}").model
    config = native_config(model)
    assert shape_of(config) == model.shape
    assert attention_windows(config) == stated_windows(model)
    assert planned_facts(model) == facts_of(config)


def test_facts_of_gemma3_are_its_own(compose_run: ComposeRun) -> None:
    facts = planned_facts(compose_run("model=tiny_gemma3").model)
    assert facts.windows == (48, None)
    assert facts.scale == pytest.approx(12**-0.5)
    big = planned_facts(compose_run("model=gemma3_270m").model)
    assert big.windows == (512, 512, 512, 512, 512, None) * 3
    assert big.scale is None


@pytest.mark.parametrize("scaling", [LINEAR, ABF], ids=lambda s: s.type)
def test_of_two_ropes_that_of_full_attention_layers_is_scaled(
    compose_run: ComposeRun, scaling: LinearScaling | BaseFrequencyScaling
) -> None:
    model = compose_run("model=tiny_gemma3").model
    native, scaled = native_config(model), scaled_config(model, scaling)
    rope = NativeRope(8, 10_000.0, 8192, by_layer_type=True)
    assert scaled.rope_parameters == {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "full_attention": scaling.rope_parameters(rope),
    }
    assert (
        scaled.rope_parameters["sliding_attention"] == native.rope_parameters["sliding_attention"]
    )
    assert scaled.max_position_embeddings == 32_768


def test_what_a_scaling_does_not_set_of_a_models_rope_is_kept(
    tmp_path: Path, compose_run: ComposeRun
) -> None:
    model = saved_as(tmp_path, compose_run, "phi3", "phi3")
    scaled = scaled_config(model, LongRopeScaling("longrope", 32_768))
    assert scaled.rope_parameters["rope_type"] == "longrope"
    assert scaled.rope_parameters["partial_rotary_factor"] == 1.0
    scaled.save_pretrained(tmp_path / "scaled")
    again = AutoConfig.from_pretrained(tmp_path / "scaled")
    assert again.rope_parameters == scaled.rope_parameters


def test_a_scaling_that_a_models_class_does_not_take_is_written_as_a_table(
    tmp_path: Path, compose_run: ComposeRun
) -> None:
    model = saved_as(tmp_path, compose_run, "phi3", "phi3")
    scaling = compose_run("rope=yarn").rope
    scaled = scaled_config(model, scaling)
    assert scaled.rope_parameters["rope_type"] == "longrope"
    network = AutoModelForCausalLM.from_config(scaled)
    native = NativeRope(8, 10_000.0, 8192)
    np.testing.assert_allclose(rotations(network), scaling.inverse_frequencies(native), rtol=1e-6)
    factor = network.get_decoder().rotary_emb.attention_scaling
    assert factor == pytest.approx(scaling.resolved_attention_factor(native))


def test_a_scaling_that_no_table_holds_is_refused_with_the_plan(
    tmp_path: Path, compose_run: ComposeRun
) -> None:
    saved_as(tmp_path, compose_run, "phi3", "phi3")
    run = compose_run(
        *("+experiment=linearard_32k", f"model.path={tmp_path}"),
        *("model.native_window=4096", "engine=cpu", "rope=dynamic"),
    )
    with pytest.raises(ConfigError, match=r"rope\.type=dynamic: .* use another"):
        plan.make(run, world_size=1)


@pytest.mark.parametrize("parameters", ["lora", "qkv"])
def test_projections_are_those_of_a_fused_layer(
    tmp_path: Path, compose_run: ComposeRun, parameters: str
) -> None:
    saved_as(tmp_path, compose_run, "phi3", "phi3")
    typed = [f"model.path={tmp_path}", "+experiment=linearard_32k", "engine=cpu"]
    typed.append(f"parameters@recipe.stages.ard.parameters={parameters}")
    run = compose_run(*typed)
    trained = run.recipe.stages["ard"].parameters
    assert getattr(trained, "projections", ("qkv_proj",)) == ("qkv_proj",)
    assert plan.make(run, world_size=1).stages[0].trainable_parameters > 0
    if parameters == "lora":
        part = "recipe.stages.ard.parameters.projections=[q_proj,k_proj]"
        with pytest.raises(ConfigError, match=r"one layer, qkv_proj: name v_proj too"):
            compose_run(*typed, part)


def test_projections_that_a_model_lacks_are_refused_before_it_is_loaded(
    tmp_path: Path, compose_run: ComposeRun
) -> None:
    saved_as(tmp_path, compose_run, "gpt_neox", "gpt_neox")
    run = compose_run(f"model.path={tmp_path}", "+experiment=linearard_32k", "engine=cpu")
    with pytest.raises(ConfigError, match=r"\['q_proj', .* unknown; allowed: query_key_value"):
        plan.make(run, world_size=1)
