"""Weights that DeepSpeed divides as they come: on two ranks, each with its part."""

from __future__ import annotations

import gc
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.step import RandomBlocks
from src.models.adapters import (
    AnyParameters,
    FullParameters,
    LoraParameters,
    QkvParameters,
    make_trainable,
)
from src.models.assembly import Sharding
from src.models.config import FolderWeights, ModelConfig
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.planning import plan
from src.settings.config import RunConfig
from src.training import launch, stage
from src.training.engine import preparation, zero
from src.training.launch import World
from src.training.loop import StepRecord
from tests.conftest import by_default
from tests.ranks import on_ranks
from tests.src.live_bytes import LiveBytes
from tests.test_experiments import SHORTER

ComposeRun = Callable[..., RunConfig]
SEED = 5
LORA = LoraParameters("lora", 4, 8.0, 0.0, ("q_proj", "k_proj", "v_proj"))
PARAMETERS: dict[str, AnyParameters] = {
    "lora": LORA,
    "dora": replace(LORA, use_dora=True),
    "full": FullParameters("full"),
    "qkv": QkvParameters("qkv"),
}

DIVIDED = ("engine.student.zero_stage=3", "engine.teacher.zero_stage=3")

# Deep enough for the whole to be many times its largest weight.
DEEP = (
    "model=tiny",
    "model.shape.layers=8",
    "engine=cpu",
    *DIVIDED,
)


def loaded(model: ModelConfig, parameters: AnyParameters, sharding: Sharding | None) -> nn.Module:
    native = native_config(model)
    network = load_model(model, native, dtype=torch.float32, sharding=sharding)
    return make_trainable(network, parameters, seed=SEED, sharding=sharding)


def bits(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    return {name: zlib.crc32(value.detach().numpy().tobytes()) for name, value in named}


def divided(world: World, settings: RunConfig, weights: Path, left: Path) -> None:
    """What a rank holds of models that are drawn and read: whole bits, its bytes, the peak."""
    drawn = settings.model
    read = replace(drawn, random_weights=False, source=FolderWeights("folder", str(weights)))
    held: dict[str, Any] = {}
    with launch.joined(world, cuda=False):
        for origin, model in (("drawn", drawn), ("read", read)):
            for name, parameters in PARAMETERS.items():
                with LiveBytes() as live:
                    sharding = zero.sharding(settings.engine, "student")
                    network = loaded(model, parameters, sharding)
                whole: dict[str, int] = {}
                for key, parameter in network.named_parameters():
                    with zero.gathered(parameter):
                        whole |= bits([(key, parameter)])
                held[f"{origin}-{name}"] = {
                    "bits": whole,
                    "held": zero.weight_bytes(network),
                    "peak": live.peak,
                }
        (left / f"held-{world.rank}.json").write_text(json.dumps(held))


@pytest.mark.integration
def test_two_ranks_hold_the_halves_of_a_whole_model(
    compose_run: ComposeRun, tmp_path: Path
) -> None:
    settings = compose_run("+experiment=quickstart", *DEEP)
    shape = settings.model.shape
    assert shape is not None
    whole = {name: loaded(settings.model, p, None) for name, p in PARAMETERS.items()}
    weights = tmp_path / "weights"
    whole["full"].save_pretrained(weights)  # type: ignore[operator]  # typed nn.Module
    on_ranks(2, divided, settings, weights, tmp_path)
    ranks = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(2)]
    largest = 4 * shape.embedding_parameters
    for held in ranks:
        assert len(held) == 2 * len(PARAMETERS)
        for case, result in held.items():
            network = whole[case.partition("-")[2]]
            size = 4 * sum(p.numel() for p in network.parameters())
            assert result["bits"] == bits(network.named_parameters()), case
            assert result["held"] == pytest.approx(size / 2, rel=0.01), case
            # The halves, the weight at hand and a copy of it, RoPE's frequencies.
            assert result["peak"] < size / 2 + 2 * largest + 2**14 < 0.75 * size, case


def trained(
    settings: RunConfig, name: str, after_step: Callable[[StepRecord], None]
) -> dict[str, Tensor]:
    """Train a stage on random tokens in this process; returns what was trained."""
    objectives = settings.objectives(name)
    planned = plan.make(settings, world_size=1).stage(name)
    streams = settings.recipe.stages[name].streams
    # Random tokens replace a corpus's blocks.
    blocks: Any = {stream: RandomBlocks(x.length, 256) for stream, x in streams.items()}
    with launch.joined(World(), cuda=False):
        engines = stage.build_engines(settings, name, planned, objectives)
        before = engines.teacher_sha256() if engines.has_teacher else None
        stage.stage_run(settings, planned, engines, blocks, World()).train(0, after_step)
        weights = engines.student.trained_parameters()
        assert before is None or engines.teacher_sha256() == before
        engines.close()
    return weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [pytest.param((), id="whole", marks=pytest.mark.thorough), pytest.param(DIVIDED, id="divided")],
)
@pytest.mark.parametrize("steps", [30, pytest.param(200, marks=pytest.mark.thorough)])
def test_tensors_do_not_pile_up_over_steps(
    compose_run: ComposeRun, tiny_overrides: list[str], overrides: tuple[str, ...], steps: int
) -> None:
    every = steps // 10
    tokens = [f"recipe.stages.ard.tokens={steps * 64}", "recipe.stages.ard.tokens_per_step=64"]
    counted: list[tuple[int, int]] = []

    def count(record: StepRecord) -> None:
        if record.step % every == 0:
            gc.collect()
            # Sparse tensors of other tests have no storage to count.
            alive = [
                t
                for t in gc.get_objects()
                if type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided
            ]
            counted.append((len(alive), sum(t.untyped_storage().nbytes() for t in alive)))

    trained(compose_run(*tiny_overrides, *tokens, *overrides), "ard", count)
    assert len(counted) == 10
    # What piles up is at least a number a step. The process may make one of its own meanwhile.
    tensors, sizes = zip(*counted, strict=True)
    assert max(tensors) - min(tensors) < steps / 2, counted
    assert max(sizes[:-1]) - min(sizes[:-1]) < steps / 2 * 4, counted
    # After the last step no batch waits for the next one.
    assert sizes[-1] - min(sizes[:-1]) < steps / 2 * 4, counted


ONE_STAGE = {"linearard_32k": "ard", "longred_c_32k": "mix", "cpt_long_32k": "cpt"}
AGAIN = ("engine.teacher.share_base=true", "engine.teacher.keep=layer_inputs")
# Weights so large that DeepSpeed frees them after use; it keeps those of at most 100,000 numbers.
FREED = ("engine.teacher.keep=layer_inputs", "model.shape.hidden=384", "model.shape.head_dim=96")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [(method, ()) for method in ONE_STAGE] + [("linearard_32k", AGAIN), ("linearard_32k", FREED)],
    ids=[*ONE_STAGE, "shared", "freed"],
)
@by_default(lambda method, more: method == "longred_c_32k" or more)
@pytest.mark.parametrize(
    "checkpointing", ["true", pytest.param("false", marks=pytest.mark.thorough)]
)
def test_weights_fetched_by_layers_train_as_whole_ones(
    compose_run: ComposeRun,
    method: str,
    more: tuple[str, ...],
    checkpointing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = (
        *(f"+experiment={method}", "model=tiny", "engine=cpu", "model.shape.layers=3"),
        *("data=files", "data.sources.files.paths=[unread]", "eval=none"),
        *(*SHORTER[method], *more),
        f"engine.student.gradient_checkpointing={checkpointing}",
    )
    found = []
    marked: list[int] = []
    ordinary = preparation.fetch_layers_whole

    def counting(decoder: Any, ends: Any) -> None:
        ordinary(decoder, ends)
        marked.append(sum(getattr(layer, "_z3_leaf", False) for layer in decoder.layers))

    monkeypatch.setattr(preparation, "fetch_layers_whole", counting)
    for divided_by in ((), DIVIDED[:1] if more is AGAIN else DIVIDED):
        metrics: list[StepRecord] = []
        weights = trained(compose_run(*settings, *divided_by), ONE_STAGE[method], metrics.append)
        found.append(([m.metrics["loss/total"] for m in metrics], weights))
    assert len(marked) >= 1
    assert all(marked), "no layer was fetched as a whole"
    (whole_losses, whole), (losses, weights) = found
    assert losses == pytest.approx(whole_losses, rel=1e-6)
    assert whole.keys() == weights.keys()
    for name in whole:
        torch.testing.assert_close(weights[name], whole[name], rtol=1e-4, atol=1e-6)


def test_without_zero_3_weights_are_whole(compose_run: ComposeRun) -> None:
    settings = compose_run("model=tiny", "engine=cpu", "engine.student.zero_stage=2")
    assert zero.sharding(settings.engine, "student") is None
    assert zero.sharding(settings.engine, "teacher") is None


def test_a_divided_teacher_leaves_the_student_whole(compose_run: ComposeRun) -> None:
    """`zero.Init` as a context would patch every class that is made in it."""
    settings = compose_run("model=tiny", "engine=cpu", "engine.teacher.zero_stage=3")
    with launch.joined(World(), cuda=False):
        sharding = zero.sharding(settings.engine, "teacher")
        assert sharding is not None
        teacher = loaded(settings.model, FullParameters("full"), sharding)
        assert all(hasattr(p, "ds_id") for p in teacher.parameters())
        student = loaded(settings.model, LORA, zero.sharding(settings.engine, "student"))
        assert not any(hasattr(p, "ds_id") for p in student.parameters())
