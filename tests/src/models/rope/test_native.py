"""Models whose own RoPE is scaled: what it is, and what a scaling makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from src.models.config import native_rope
from src.models.hf_config import native_config, scaled_config
from src.models.rope import NATIVE_TYPES, SCALINGS, NativeRope, Scaling, scaling_of
from src.models.rope.dynamic import DynamicScaling
from src.models.rope.linear import LinearScaling
from src.models.rope.longrope import LongRopeScaling
from src.models.rope.own import OwnScaling
from src.models.rope.yarn import YarnScaling
from src.models.shapes import shape_of
from tests.src.models.examples import ComposeRun, at, saved_as
from tests.src.models.rope.conftest import transformers_rope

DIM, THETA, ORIGINAL, WINDOW = 16, 10_000.0, 256, 1024
PAIRS = DIM // 2
OWN: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "beta_fast": 16.0,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.05 * i for i in range(PAIRS)],
        "long_factor": [1.0 + 0.5 * i for i in range(PAIRS)],
        "original_max_position_embeddings": ORIGINAL,
    },
}
SIZES = {"hidden_size": 4 * DIM, "head_dim": DIM, "max_position_embeddings": WINDOW}
LENGTHS = (2, ORIGINAL, ORIGINAL + 1, WINDOW, 4 * WINDOW)
# What each scaling needs besides its target.
FIELDS: dict[str, dict[str, Any]] = {
    "abf": {"theta": 1e6},
    "per_frequency": {"factors": tuple(1.0 + 0.3 * i for i in range(PAIRS))},
}


def config(own: str, **more: Any) -> PretrainedConfig:
    rope = OWN[own] | {"rope_theta": THETA} | more
    return AutoConfig.for_model("llama", **SIZES, rope_parameters=rope)


def native(own: str) -> NativeRope:
    found = scaling_of(config(own).rope_parameters, WINDOW)
    assert found is not None
    return NativeRope(DIM, THETA, WINDOW, scaling=found[0], original_window=found[1])


def theirs(config: PretrainedConfig, length: int) -> tuple[np.ndarray, float]:
    """Frequencies and attention factor at a length, by transformers' own code."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary: Any = LlamaRotaryEmbedding(config)
    rotary(torch.zeros(1, 1, 1), torch.tensor([[length - 1]]))
    return rotary.inv_freq.double().numpy(), float(rotary.attention_scaling)


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_models_own_rope_is_that_of_transformers(own: str, length: int) -> None:
    rope = native(own)
    frequencies, factor = theirs(config(own), length)
    np.testing.assert_allclose(rope.inverse_frequencies(length=length), frequencies, rtol=2e-6)
    assert rope.attention_factor == pytest.approx(factor)


def test_yarns_attention_factor_that_is_given_wins_over_mscale() -> None:
    both = {"mscale": 1.0, "mscale_all_dim": 0.5}
    for more in (both, both | {"attention_factor": 1.2}, {"truncate": False}):
        found = scaling_of(config("yarn", **more).rope_parameters, WINDOW)
        assert found is not None
        rope = NativeRope(DIM, THETA, WINDOW, scaling=found[0], original_window=found[1])
        frequencies, factor = theirs(config("yarn", **more), 3)
        np.testing.assert_allclose(rope.inverse_frequencies(), frequencies, rtol=2e-6)
        assert rope.attention_factor == pytest.approx(factor)


def scalings(**more: Any) -> list[Scaling]:
    named = {scaling.__module__.rpartition(".")[2]: scaling for scaling in SCALINGS}
    return [
        cls(name, 4 * WINDOW, **FIELDS.get(name, {}), **more)
        for name, cls in named.items()
        if cls not in (DynamicScaling, OwnScaling)
    ]


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("scaling", scalings(), ids=lambda s: s.type)
def test_a_composed_scaling_is_what_transformers_reads(own: str, scaling: Scaling) -> None:
    rope = native(own)
    if own == "longrope" and isinstance(scaling, LongRopeScaling):
        with pytest.raises(ValueError, match=r"would change at 256 and 1024 .* another scaling"):
            scaling.exported(rope)
        return
    exported = AutoConfig.for_model(
        "llama",
        **(SIZES | {"max_position_embeddings": scaling.target_length}),
        rope_parameters=scaling.exported(rope),
    )
    for length in LENGTHS:
        frequencies, factor = theirs(exported, length)
        ours = scaling.inverse_frequencies(rope, length)
        np.testing.assert_allclose(ours, frequencies, rtol=2e-6, err_msg=str(length))
        assert scaling.total_attention_factor(rope) == pytest.approx(factor)


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("scaling", scalings(on_scaled="replace"), ids=lambda s: s.type)
def test_a_replacing_scaling_is_that_of_the_unscaled_model(own: str, scaling: Scaling) -> None:
    plain = NativeRope(DIM, THETA, ORIGINAL)
    assert scaling.base(native(own)) == plain
    assert scaling.exported(native(own)) == scaling.exported(plain)


def test_linear_divides_every_own_frequency_and_keeps_the_own_factor() -> None:
    rope = native("yarn")
    scaling = LinearScaling("linear", 2 * WINDOW)
    expected = rope.inverse_frequencies() / 2
    np.testing.assert_allclose(scaling.inverse_frequencies(rope), expected, rtol=1e-15)
    assert scaling.total_attention_factor(rope) == 0.1 * math.log(4) + 1


def test_yarn_blends_by_the_turns_that_pairs_really_make() -> None:
    """A pair that turns once within the window is interpolated, by the model's own frequency."""
    rope = native("llama3")
    scaling = YarnScaling("yarn", 4 * WINDOW, truncate=False)
    turns = WINDOW * rope.inverse_frequencies() / (2 * math.pi)
    kept = scaling.inverse_frequencies(rope) / rope.inverse_frequencies()
    assert np.allclose(kept[turns <= 1], 1 / 4)
    assert np.allclose(kept[turns >= 32], 1)
    assert ((turns < 1).sum(), (turns > 1).sum()) > (0, 0)
    unscaled = rope.unscaled()
    for count in (0.001, 0.9, 7.0, 1e5):
        one = replace(unscaled, scaling=LinearScaling("linear", ORIGINAL, factor=1.0))
        assert one.pair_of(count) == pytest.approx(unscaled.pair_of(count))


def test_the_same_rope_again_is_nothing_to_learn() -> None:
    for own in OWN:
        scaling = LinearScaling("linear", WINDOW, factor=1.0)
        assert scaling.is_native_at(native(own), ORIGINAL)
        assert not replace(scaling, factor=2.0).is_native_at(native(own), ORIGINAL)


def test_a_scaling_that_grows_with_the_sequence_is_refused() -> None:
    scaling = DynamicScaling("dynamic", 4 * WINDOW)
    with pytest.raises(
        ValueError, match=r"rope\.type=dynamic: .* is llama3, .* rope\.on_scaled=replace"
    ):
        scaling.exported(native("llama3"))
    replacing = replace(scaling, on_scaled="replace")
    assert replacing.exported(native("llama3"))["rope_type"] == "dynamic"


def test_other_types_are_not_known() -> None:
    with pytest.raises(ValueError, match="known are " + ", ".join(NATIVE_TYPES)):
        scaling_of({"rope_type": "dynamic", "factor": 2.0}, WINDOW)


@pytest.mark.parametrize(("family", "own"), [("llama", "llama3"), ("qwen2", "yarn")])
def test_teacher_and_export_of_a_folder(
    tmp_path: Any, compose_run: ComposeRun, family: str, own: str
) -> None:
    rope = OWN[own] | {"rope_theta": THETA}
    model = saved_as(tmp_path, compose_run, family, family, **SIZES, rope_parameters=rope)
    model = replace(at(tmp_path, compose_run), native_window=WINDOW)
    teacher = native_config(model)
    assert teacher.rope_parameters["rope_type"] == own, "the teacher is the model as it is"
    own_rope = native_rope(model, shape_of(teacher))
    scaling = LinearScaling("linear", 4 * WINDOW)
    AutoModelForCausalLM.from_config(scaled_config(model, scaling)).save_pretrained(
        tmp_path / "export"
    )
    frequencies, factor = transformers_rope(tmp_path / "export", WINDOW)
    np.testing.assert_allclose(frequencies, own_rope.inverse_frequencies() / 4, rtol=2e-6)
    assert factor == pytest.approx(own_rope.attention_factor)
