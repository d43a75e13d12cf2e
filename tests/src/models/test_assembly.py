"""Models put together weight by weight: bits of whole ones, never whole themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from src.models.adapters import (
    AnyParameters,
    FullParameters,
    LoraParameters,
    QkvParameters,
    make_trainable,
)
from src.models.config import FolderWeights, ModelConfig, ModelError
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.settings.config import RunConfig
from tests.src.live_bytes import LiveBytes

ComposeRun = Callable[..., RunConfig]
CONF = Path(__file__).resolve().parents[3] / "conf" / "model"
# One for each family.
TINY = sorted(p.stem for p in CONF.glob("tiny*.yaml"))
LORA = LoraParameters("lora", 4, 8.0, 0.0, ("q_proj", "v_proj"))


class Recording:
    """Leaves weights whole, and notes what comes."""

    def __init__(self) -> None:
        self.came: list[nn.Parameter] = []

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        new = [p for p in parameters if all(p is not known for known in self.came)]
        assert not any(p.is_meta for p in new)
        self.came += new

    @contextmanager
    def known(self) -> Iterator[None]:
        yield


class Halving(Recording):
    """Keeps half of each weight."""

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.data = parameter.data.flatten()[::2].clone()


def load(model: ModelConfig, dtype: torch.dtype, sharding: Recording | None) -> PreTrainedModel:
    return load_model(model, native_config(model), dtype=dtype, capture=True, sharding=sharding)


def saved(model: ModelConfig, folder: Path, shard_size: str = "50GB") -> ModelConfig:
    load(model, torch.float32, None).save_pretrained(folder, max_shard_size=shard_size)
    source = FolderWeights("folder", str(folder))
    return replace(model, random_weights=False, source=source)


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        mine = dict(getattr(one, kind)(remove_duplicate=False))
        its = dict(getattr(other, kind)(remove_duplicate=False))
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            assert value.dtype == its[name].dtype, name
            assert torch.equal(value, its[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", TINY)
def test_drawn_weights_are_the_bits_of_a_whole_model(
    compose_run: ComposeRun, name: str, dtype: torch.dtype
) -> None:
    model = compose_run(f"model={name}").model
    sharding = Recording()
    network = load(model, dtype, sharding)
    assert_same_bits(load(model, dtype, None), network)
    came = {id(p) for p in sharding.came}
    assert all(id(p) in came for p in network.parameters())
    assert not network.training


@pytest.mark.parametrize("shard_size", ["50GB", "100KB"], ids=["one-file", "many-files"])
@pytest.mark.parametrize("name", TINY)
def test_read_weights_are_the_bits_of_a_whole_model(
    compose_run: ComposeRun, tmp_path: Path, name: str, shard_size: str
) -> None:
    model = saved(compose_run(f"model={name}").model, tmp_path, shard_size)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard_size == "100KB")
    sharding = Recording()
    network = load(model, torch.bfloat16, sharding)
    assert_same_bits(load(model, torch.bfloat16, None), network)
    assert len(sharding.came) == len(list(network.parameters()))
    assert not network.training


def test_the_random_generator_is_left_as_it_was(compose_run: ComposeRun) -> None:
    before = torch.get_rng_state()
    load(compose_run("model=tiny").model, torch.float32, Recording())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_adapters_are_the_bits_of_whole_ones(compose_run: ComposeRun, use_dora: bool) -> None:
    model, lora = compose_run("model=tiny").model, replace(LORA, use_dora=use_dora)
    sharding = Recording()
    base = load(model, torch.float32, sharding)
    count = len(sharding.came)
    network = make_trainable(base, lora, seed=5, sharding=sharding)
    whole = make_trainable(load(model, torch.float32, None), lora, seed=5)
    assert_same_bits(whole, network)
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert {id(p) for p in sharding.came[count:]} == trained


@pytest.mark.parametrize("parameters", [FullParameters("full"), QkvParameters("qkv")])
def test_without_adapters_nothing_more_comes(
    compose_run: ComposeRun, parameters: AnyParameters
) -> None:
    sharding = Recording()
    base = load(compose_run("model=tiny").model, torch.float32, sharding)
    count = len(sharding.came)
    make_trainable(base, parameters, seed=5, sharding=sharding)
    assert len(sharding.came) == count


@pytest.mark.parametrize("origin", ["drawn", "read"])
def test_no_more_is_alive_than_the_parts_and_a_weight(
    compose_run: ComposeRun, tmp_path: Path, origin: str
) -> None:
    model = compose_run("model=tiny", "model.shape.layers=16").model
    if origin == "read":
        model = saved(model, tmp_path)
    assert model.shape is not None
    whole = 2 * model.shape.parameters
    largest = 2 * model.shape.vocabulary * model.shape.hidden
    assert 3 * largest < whole / 4, "the model is large enough to tell"
    with LiveBytes() as live:
        network = load(model, torch.bfloat16, Halving())
    # What is kept; the weight at hand in two forms (float32 in a file); RoPE's frequencies.
    assert live.peak < whole / 2 + 3 * largest + 2**12
    assert live.now >= whole / 2, "what is kept was counted"
    del network


def test_a_whole_model_is_counted_whole(compose_run: ComposeRun) -> None:
    """The measure of the test before sees what it is to see."""
    model = compose_run("model=tiny", "model.shape.layers=16").model
    assert model.shape is not None
    with LiveBytes() as live:
        network = load(model, torch.bfloat16, None)
    assert live.peak >= 2 * model.shape.parameters
    del network


def test_a_folder_without_a_weight_is_refused(compose_run: ComposeRun, tmp_path: Path) -> None:
    model = saved(compose_run("model=tiny").model, tmp_path, "100KB")
    index = tmp_path / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    del held["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(held))
    with pytest.raises(ModelError, match=r"has no weights model\.norm\.weight"):
        load(model, torch.float32, Recording())


def test_a_folder_of_other_files_is_refused(compose_run: ComposeRun, tmp_path: Path) -> None:
    model = saved(compose_run("model=tiny").model, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        load(model, torch.float32, Recording())


def test_a_weight_of_another_shape_is_refused(compose_run: ComposeRun, tmp_path: Path) -> None:
    model = saved(compose_run("model=tiny").model, tmp_path)
    wider = compose_run("model=tiny", "model.shape.intermediate=96").model
    config = native_config(wider)
    with pytest.raises(ModelError, match=r"has shape \[.*\], the model \[32, 96"):
        load_model(model, config, dtype=torch.float32, sharding=Recording())


def test_damaged_files_are_named(compose_run: ComposeRun, tmp_path: Path) -> None:
    model = saved(compose_run("model=tiny").model, tmp_path / "one")
    file = tmp_path / "one" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or missing"):
        load(model, torch.float32, Recording())

    model = saved(compose_run("model=tiny").model, tmp_path / "many", "100KB")
    index = tmp_path / "many" / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    files = sorted(set(held["weight_map"].values()))
    elsewhere = held["weight_map"]["model.norm.weight"]
    other = next(name for name in files if name != elsewhere)
    held["weight_map"]["model.norm.weight"] = other
    index.write_text(json.dumps(held))
    with pytest.raises(ModelError, match=rf"{other} has no weights model\.norm\.weight"):
        load(model, torch.float32, Recording())
    (tmp_path / "many" / other).unlink()
    with pytest.raises(ModelError, match=rf"{other} is damaged or missing"):
        load(model, torch.float32, Recording())
    index.write_text("{")
    with pytest.raises(ModelError, match="is not an index of weights"):
        load(model, torch.float32, Recording())
