"""The estimates' arithmetic, where it can be checked without the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from src.models.adapters import causal_model, make_trainable
from src.models.config import ModelShape
from src.models.facts import ModelFacts
from src.models.hf_config import native_config, projection_sizes
from src.models.loading import load_model
from src.models.shapes import facts_of
from src.planning import cost, duration
from src.planning.cost import Setting, adapter_parameters
from src.planning.devices import ACCELERATORS
from src.settings.config import RunConfig
from src.training.schedule import StageSchedule

# Engines that leave nothing to the plan.
BASE = ("+experiment=linearard_32k", "engine=zero1")


def setting(run: RunConfig, stage: str = "ard", *, checkpointing: bool = False, **more) -> Setting:
    shape: ModelShape = run.model.shape  # type: ignore[assignment]
    facts = ModelFacts(
        shape.layers, (None,) * shape.layers, shape.heads, shape.kv_heads, shape.head_dim
    )
    chosen = run.recipe.stages[stage]
    projections = projection_sizes(run.model, shape)
    adapters = adapter_parameters(chosen.parameters, projections, shape.layers)
    made = Setting(run, chosen, shape, facts, adapters, 1, checkpointing, "qkv")
    return replace(made, **more)


@pytest.mark.parametrize("model", ["tiny", "tiny_qwen2", "tiny_qwen3", "tiny_gemma3"])
@pytest.mark.parametrize("kind", ["lora", "full", "qkv"])
def test_what_autograd_keeps_of_layers_is_counted_tensor_by_tensor(
    compose_run: Callable[..., RunConfig], model: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes saved for the backward pass by a deep model, less those of a shallow one.

    Without dropout, whose masks are four bytes a number on a CPU and one on a GPU.
    """
    # ZeRO-3 leaves its own in torch, for the whole process; it keeps the inputs of frozen weights.
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    tokens = 96

    def kept(layers: int) -> tuple[float, Setting]:
        run = compose_run(
            *BASE,
            f"model={model}",
            "engine=cpu",
            f"parameters@recipe.stages.cpt.parameters={kind}",
            f"model.shape.layers={layers}",
            "model.shape.hidden=64",
            "model.shape.heads=8",
            "model.shape.kv_heads=8",
            "model.shape.intermediate=176",
            *(["recipe.stages.cpt.parameters.dropout=0.0"] if kind == "lora" else []),
        )
        parameters = run.recipe.stages["cpt"].parameters
        base = load_model(run.model, native_config(run.model), dtype=torch.float32, capture=True)
        network = make_trainable(base, parameters, seed=0).train()
        saved: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            owner = x if x._base is None else x._base
            if not isinstance(owner, torch.nn.Parameter):
                saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        ids = torch.randint(0, 256, (1, tokens))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = causal_model(network).get_decoder()(input_ids=ids, use_cache=False)
        total = float(sum(saved.values()))
        del out
        return total, setting(run, "cpt")

    (few, made), (many, _) = kept(1), kept(5)
    wants = made.objectives[next(iter(made.objectives))].needs(made.facts)
    estimate = cost._kept_of_layer(replace(made, keep="qkv"), wants) * tokens
    assert (many - few) / 4 == pytest.approx(estimate, rel=0.1)


def test_checkpointing_keeps_inputs_and_pays_a_forward_pass(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(*BASE)
    stored, again = (setting(run, checkpointing=c) for c in (False, True))
    assert cost.memory(again)["activations"] < 0.15 * cost.memory(stored)["activations"]
    schedule = StageSchedule(run.recipe.stages["ard"])
    ratio = cost.work(again, schedule).products / cost.work(stored, schedule).products
    assert 1.2 < ratio < 1.5


def test_memory_of_activations_is_linear_in_tokens(compose_run: Callable[..., RunConfig]) -> None:
    def parts(length: int) -> dict[str, float]:
        run = compose_run(
            *BASE,
            f"recipe.stages.ard.streams.short.length={length}",
            "recipe.stages.ard.tokens_per_step=16384",
            "objective.allow_beyond_native=true",
        )
        return cost.memory(setting(run, checkpointing=True, keep="layer_inputs"))

    short, long = parts(4096), parts(16384)
    for part in ("activations", "teacher's layers", "relation kernel"):
        assert long[part] == pytest.approx(4 * short[part])
    assert long["optimizer"] == short["optimizer"]


def test_layers_with_a_shorter_window_keep_their_masks(
    compose_run: Callable[..., RunConfig],
) -> None:
    """A mask of t x t numbers for each sliding layer; one of them if layers are checkpointed."""

    def masks(length: int, *, again: bool) -> float:
        run = compose_run(
            *("+experiment=cpt_long_32k", "model=tiny_gemma3", "engine=zero1"),
            f"recipe.stages.cpt.streams.long.length={length}",
            f"recipe.stages.cpt.tokens_per_step={length}",
        )
        made = setting(run, "cpt", checkpointing=again)
        windows.extend(facts_of(native_config(run.model)).windows)
        made = replace(made, facts=facts_of(native_config(run.model)))
        return cost.memory(made).get("attention masks", 0.0)

    windows: list[int | None] = []
    kept = masks(8192, again=False)
    layers = [window for window in windows if window is not None]
    assert kept == (len(layers) * 2 + 1) * 8192**2
    assert masks(8192, again=True) == (2 + 1) * 8192**2
    assert masks(layers[0], again=False) == 0


@pytest.mark.parametrize(("dtype", "width"), [("float32", 8), ("bfloat16", 12)])
def test_adamw_keeps_two_moments_and_a_copy_of_low_precision_weights(
    compose_run: Callable[..., RunConfig], dtype: str, width: int
) -> None:
    run = compose_run(*BASE, "model=tiny", f"engine.dtype={dtype}")
    held = setting(run)
    assert cost.memory(held)["optimizer"] == width * held.trainable


def test_time_follows_work_rate_and_ranks(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(*BASE)
    schedule = StageSchedule(run.recipe.stages["ard"])
    h200 = ACCELERATORS["h200"]
    one = duration.step_seconds(setting(run), schedule, h200)
    slow = duration.step_seconds(setting(run), schedule, ACCELERATORS["a100"])
    two = duration.step_seconds(setting(run, world_size=2), schedule, h200)
    assert one is not None
    assert slow is not None
    assert two is not None
    assert 2 * one < slow < 4 * one
    assert 0.5 * one < two < 0.6 * one
    again = duration.step_seconds(setting(run, checkpointing=True), schedule, h200)
    assert again is not None
    assert again > 1.15 * one
    unknown = replace(h200, matrix_rate=None)
    assert duration.step_seconds(setting(run), schedule, unknown) is None


def test_relations_alone_end_with_the_last_layers_queries_keys_and_values(
    compose_run: Callable[..., RunConfig],
) -> None:
    first = compose_run(*BASE, "objective.terms.relation.layers=[0]")
    work = cost.block_work(setting(first), "short")
    assert work.attention == 0
    qkv, adapters, n = 3 * 4096**2, 805_306_368, 4096
    assert work.products == 2 * n * (3 * qkv + 3 * adapters)


def test_a_micro_step_holds_no_more_than_a_step(compose_run: Callable[..., RunConfig]) -> None:
    """One 32K block a step: more at once would never be run."""

    def needed(stage: str, micro_batch: int) -> float:
        run = compose_run(*BASE, "model=smollm2_135m")
        at_once = replace(setting(run, stage), micro_batch=micro_batch)
        return sum(cost.memory(at_once).values())

    assert needed("cpt", 4) == needed("cpt", 1)
    assert needed("ard", 2) < needed("ard", 4) == needed("ard", 8)


def test_ranks_that_share_blocks_hold_a_part_each(compose_run: Callable[..., RunConfig]) -> None:
    """Half of the activations, and half of the work but for the exchange."""

    def of(parts: int, model: str = "llama2_7b", ranks: int = 2) -> Setting:
        run = compose_run(*BASE, f"model={model}", f"engine.sequence_parallel={parts}")
        return setting(run, checkpointing=True, keep="layer_inputs", world_size=ranks)

    whole, shared = cost.memory(of(1)), cost.memory(of(2))
    for part in ("activations", "teacher's layers", "relation kernel"):
        assert shared[part] == pytest.approx(whole[part] / 2)
    for part in ("student weights", "gradients", "optimizer"):
        assert shared[part] == whole[part]
    schedule = StageSchedule(compose_run(*BASE).recipe.stages["ard"])
    h100 = ACCELERATORS["h100"]
    apart, together = (duration.step_seconds(of(parts), schedule, h100) for parts in (1, 2))
    assert apart is not None
    assert together is not None
    assert apart < together < 1.1 * apart
    # Eight key-value heads for sixteen ranks: each is there twice.
    even, twice = of(8, "llama3_8b", 8), of(16, "llama3_8b", 16)
    assert (even.copies, twice.copies) == (1.0, 2.0)
    assert cost.memory(twice)["activations"] > cost.memory(even)["activations"] / 2
