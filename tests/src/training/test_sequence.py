"""Blocks that ranks share: losses, gradients and trained weights are those of one rank."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Outputs
from src.objectives.language_modeling import LanguageModeling
from src.planning import plan
from src.planning.advice import check_fits
from src.planning.devices import ACCELERATORS
from src.planning.printing import show
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training.launch import World
from src.training.sequence import NOTHING, Place, next_tokens
from tests.conftest import by_default, losses
from tests.ranks import on_ranks
from tests.src.passes.test_passes import Heads, LastHidden
from tests.src.training import sequence_ranks
from tests.src.training.sequence_ranks import PassCase


def test_neighbouring_ranks_share_blocks() -> None:
    places = [Place.of(rank, 6, 3) for rank in range(6)]
    assert [(p.reader, p.readers) for p in places] == [(0, 2)] * 3 + [(1, 2)] * 3
    assert [(p.part, p.parts) for p in places] == [(0, 3), (1, 3), (2, 3)] * 2
    rows_bt = np.arange(24).reshape(2, 12)
    assert [p.cut(rows_bt).tolist() for p in places[:3]] == [
        [[0, 1, 2, 3], [12, 13, 14, 15]],
        [[4, 5, 6, 7], [16, 17, 18, 19]],
        [[8, 9, 10, 11], [20, 21, 22, 23]],
    ]
    assert [p.first(12) for p in places[3:]] == [0, 4, 8]
    assert Place.of(3, 4, 1) == Place(3, 4)


def test_nothing_follows_a_blocks_last_token() -> None:
    rows_bt = np.array([[5, 6, 7], [0, 1, 2]])
    assert next_tokens(rows_bt).tolist() == [[6, 7, NOTHING], [1, 2, NOTHING]]


def test_a_part_of_blocks_says_its_positions() -> None:
    ids_bt = torch.zeros(2, 3, dtype=torch.int64)
    assert Batch(ids_bt).contiguous_bt is None
    second = Batch(ids_bt, parts=2, first=3).contiguous_bt
    assert second is not None
    assert second.tolist() == [[3, 4, 5]] * 2


@pytest.mark.parametrize("parts", [2, 3, 6], ids=lambda n: f"{n}-parts")
@pytest.mark.parametrize("chunk", [1, 5, 2048])
def test_the_mean_of_parts_next_token_losses_is_the_blocks(parts: int, chunk: int) -> None:
    facts = ModelFacts(layers=1, windows=(None,), heads=2, kv_heads=2, head_dim=8)
    objective = LanguageModeling("language_modeling", chunk=chunk)
    draw = torch.Generator().manual_seed(0)
    head = nn.Linear(4, 11, dtype=torch.float64)
    hidden_bth = torch.randn(2, 12, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    rows_bt = np.random.default_rng(0).integers(0, 11, (2, 12))
    whole, _ = objective.loss(
        Batch(torch.from_numpy(rows_bt)), None, Outputs(hidden_bth, head=head), facts
    )
    values = []
    for part in range(parts):
        place = Place(0, 1, part, parts)
        first, size = place.first(12), 12 // parts
        batch = Batch(
            torch.from_numpy(place.cut(rows_bt)),
            parts=parts,
            first=first,
            next_ids_bt=torch.from_numpy(place.cut(next_tokens(rows_bt))),
        )
        outputs = Outputs(hidden_bth[:, first : first + size], head=head)
        values.append(objective.loss(batch, None, outputs, facts)[0])
    mean = torch.stack(values).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-6, atol=0)
    expected, found = (torch.autograd.grad(x, hidden_bth)[0] for x in (whole, mean))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


PASSES = {
    "relation": PassCase(),
    "checkpointed": PassCase(checkpointing=True, keep="layer_inputs"),
    "reference": PassCase(objective="reference", lora=False),
    "qwen3": PassCase(family="qwen3", checkpointing=True),
    "longred": PassCase(objective="longred", lora=False, skipping=True),
    "longred-checkpointed": PassCase(objective="longred", checkpointing=True),
    "logits": PassCase(objective="logits"),
    "language": PassCase(objective="language", lora=False),
    "language-checkpointed": PassCase(objective="language", checkpointing=True, skipping=True),
    "relation-packed": PassCase(packed=True, checkpointing=True),
    "longred-packed": PassCase(packed=True, objective="longred", lora=False),
    "logits-packed": PassCase(packed=True, objective="logits"),
    "language-packed": PassCase(packed=True, objective="language", lora=False),
    "reference-packed": PassCase(packed=True, objective="reference", lora=False),
    "longred-last-packed": PassCase(packed=True, objective="longred-last"),
    # Of grouped heads, each key-value head is on several ranks where there are more ranks.
    "relation-8-on-1": PassCase(heads=Heads(8, 1)),
    "relation-8-on-2": PassCase(heads=Heads(8, 2), checkpointing=True),
    "language-8-on-1": PassCase(heads=Heads(8, 1), objective="language", lora=False),
    "relation-gemma3": PassCase("gemma3", heads=Heads(4, 1, window=64)),
    "relation-qwen2": PassCase("qwen2", heads=Heads(12, 2), lora=False),
}


# The others are thorough: in four parts there are more of them than key-value heads.
ALWAYS_PASSED = {(name, 2) for name, case in PASSES.items() if case.heads == Heads()}
ALWAYS_PASSED |= {(name, 4) for name in ("relation", "qwen3", "longred-packed", "relation-8-on-1")}


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param(name, parts, id=f"{name}-{parts}-parts")
        for name, case in PASSES.items()
        for parts in (2, 4, 8)
        if case.heads.queries % parts == 0
    ],
)
@by_default(lambda name, parts: (name, parts) in ALWAYS_PASSED)
def test_float64_losses_and_gradients_are_those_of_whole_blocks(
    found_on: Path, name: str, parts: int
) -> None:
    """Four and eight parts are more than there are key-value heads."""
    one = load_file(found_on / f"passes-1-{name}.safetensors")
    found = load_file(found_on / f"passes-{parts}-{name}.safetensors")
    assert found.keys() == one.keys()
    assert one["loss"] > 1e-4
    # Cross-entropy and cosines are in float32.
    wide = name.startswith(("relation", "checkpointed", "reference", "qwen3"))
    for key, expected in one.items():
        atol = (1e-11 if wide else 1e-6) * float(expected.abs().max())
        torch.testing.assert_close(found[key], expected, rtol=1e-9 if wide else 1e-5, atol=atol)
    assert any(value.abs().max() > 1e-6 for key, value in one.items() if key != "loss")


# An epsilon above the gradients makes AdamW's update nearly proportional to them, so that it does
# not enlarge the differences of numbers next to nothing.
STEADY = (
    "model=tiny",
    "engine=cpu",
    "tracking=none",
    "eval=none",
    "optim.eps=1.0",
    "allow_oversubscribe=true",
)
ARD = (
    "+experiment=linearard_32k",
    "~recipe.stages.cpt",
    "recipe.stages.ard.parameters.dropout=0.0",
    "recipe.stages.ard.streams.short.length=64",
    "recipe.stages.ard.tokens_per_step=256",
    "recipe.stages.ard.tokens=512",
    "recipe.stages.ard.lr=0.5",
    "objective.terms.relation.weights.qk=0.5",
)
CPT = (
    "+experiment=cpt_long_32k",
    "budget=null",
    "recipe.stages.cpt.streams.long.length=64",
    "recipe.stages.cpt.tokens_per_step=128",
    "recipe.stages.cpt.tokens=192",
    "recipe.stages.cpt.lr=0.5",
)
LONGRED = (
    "+experiment=longred_c_32k",
    "budget=null",
    "recipe.stages.mix.tokens=1024",  # a whole turn of the mixture
    "recipe.stages.mix.tokens_per_step=512",
    "recipe.stages.mix.slot_tokens=64",
    "recipe.stages.mix.streams.long.length=64",
    "recipe.stages.mix.streams.short.length=16",
    "recipe.stages.mix.streams.s2l.length=32",
    "recipe.stages.mix.lr=0.1",
)
# `packed` is the mixture on packed blocks: all of its objectives, and next tokens by document.
METHODS = {"ard": ARD, "cpt": CPT, "longred": LONGRED, "packed": LONGRED}
CHECKPOINTED = "engine.student.gradient_checkpointing=true"
IN_TWO = "engine.sequence_parallel=2"
SHARED = {
    "zero0": (IN_TWO,),
    "zero0-checkpointed": (IN_TWO, CHECKPOINTED),
    "zero1-checkpointed": (IN_TWO, "engine.student.zero_stage=1", CHECKPOINTED),
    "zero2": (IN_TWO, "engine.student.zero_stage=2"),
    "zero3-checkpointed": (
        *(IN_TWO, "engine.student.zero_stage=3", "engine.teacher.zero_stage=3"),
        CHECKPOINTED,
    ),
    "shared-base": (IN_TWO, "engine.teacher.share_base=true", CHECKPOINTED),
    "shared-base-zero3": (
        *(IN_TWO, "engine.teacher.share_base=true", "engine.student.zero_stage=3"),
    ),
    # All four ranks share one block, more than there are key-value heads.
    "in-four": ("engine.sequence_parallel=4",),
}
ALWAYS = {
    ("ard", "shared-base-zero3"),
    ("ard", "in-four"),
    ("cpt", "zero3-checkpointed"),
    ("longred", "zero1-checkpointed"),
}
VARIANTS = [
    pytest.param(method, name, marks=() if (method, name) in ALWAYS else pytest.mark.thorough)
    for method in METHODS
    for name in SHARED
    if method == "ard" or not name.startswith("shared")
]


@pytest.fixture(scope="module")
def found_on(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    compose_run: Callable[..., RunConfig],
) -> Path:
    """What one rank and several found of what the tests ask for."""
    alone: dict[str, RunConfig] = {}
    trained: dict[str, RunConfig] = {}
    passes: list[tuple[str, int]] = []
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "found_on" in item.fixturenames:
            asked = item.callspec.params
            if "parts" in asked:
                passes.append((asked["name"], asked["parts"]))
            else:
                method, name = asked["method"], asked["name"]
                overrides = (*METHODS[method], *STEADY, *SHARED[name])
                trained[f"{method}-{name}"] = compose_run(*overrides)
                alone[method] = compose_run(*METHODS[method], *STEADY)
    folder = tmp_path_factory.mktemp("ranks")
    once = sorted({name for name, _ in passes})
    sequence_ranks.work(World(), folder, alone, [(name, PASSES[name], 1) for name in once])
    for ranks, runs in {2: {}, 4: trained, 8: {}}.items():
        shared = [(name, PASSES[name], parts) for name, parts in passes if parts == ranks]
        if runs or shared:
            on_ranks(ranks, sequence_ranks.work, folder, runs, shared)
    return folder


def _same_training(one: Path, other: Path) -> None:
    expected, found = (json.loads(p.with_suffix(".json").read_text()) for p in (one, other))
    assert len(expected) == len(found) == 2
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"tokens_per_second"}:
            assert b[key] == pytest.approx(a[key], rel=5e-6, abs=1e-8), key
    before, after = (load_file(p.with_suffix(".safetensors")) for p in (one, other))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-6, atol=5e-7, msg=name)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), VARIANTS)
def test_ranks_that_share_blocks_train_as_one(found_on: Path, method: str, name: str) -> None:
    """Of four ranks each two read blocks of their own, or all four share one."""
    _same_training(found_on / method, found_on / f"{method}-{name}")


@pytest.mark.thorough
@pytest.mark.slow
def test_a_run_of_two_ranks_that_share_blocks_resumes(
    tiny_overrides: list[str],
    tmp_path: Path,
    run_here: Callable[..., subprocess.CompletedProcess],
) -> None:
    shared = ["launch.nproc=2", "engine.sequence_parallel=2"]
    for name, overrides in {"one": [], "two": shared}.items():
        done = run_here("src.train", *tiny_overrides, f"run_dir={tmp_path / name}", *overrides)
        assert done.returncode == 0, done.stderr
    expected = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-5)
    # As if it had been stopped after its first stage.
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-6")
    record = tmp_path / "two" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "interrupted"}))
    done = run_here("src.train", f"resume={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "two" / "export" / "config.json").is_file()


BASE = ("+experiment=linearard_32k", "model=tiny", "engine.sequence_parallel=2")


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        pytest.param(
            (),
            1,
            r"engine\.sequence_parallel=2: .*, and 1 cannot.*launch\.nproc=2",
            id="too-few-ranks",
        ),
        pytest.param((), 3, r"engine\.sequence_parallel=2: .*, and 3 cannot", id="uneven-ranks"),
        pytest.param(
            ("engine.sequence_parallel=3",),
            3,
            r"sequence_parallel=3: the 4 heads of tiny, with keys and values in 2, .* \[2, 4\]",
            id="heads",
        ),
        pytest.param(
            ("model.shape.heads=12", "model.shape.kv_heads=4", "engine.sequence_parallel=6"),
            6,
            r"sequence_parallel=6: the 12 heads of tiny, with keys and values in 4, .* \[2, 4, 12",
            id="key-value-heads",
        ),
        pytest.param(
            ("model.shape.heads=24", "model.shape.kv_heads=3", "engine.sequence_parallel=8"),
            8,
            r"sequence_parallel=8: the 24 heads .*, with keys and values in 3, .* \[3, 6, 12, 24",
            id="three-key-value-heads",
        ),
        pytest.param(
            ("engine.compile=true",),
            2,
            r"compile=true and sequence_parallel=2 do not go together",
            id="compile",
        ),
        pytest.param(
            ("+model.attention=eager",), 2, r"model\.attention: eager .*; use sdpa", id="eager"
        ),
        pytest.param(
            ("rope=dynamic",), 2, r"rope\.type: dynamic .*sequence_parallel", id="dynamic"
        ),
        pytest.param(("rope=longrope",), 2, r"rope\.type: longrope .*parallel", id="longrope"),
        pytest.param(
            ("model=tiny_mistral",),
            2,
            r"streams\.short\.length: 4096 tokens are more than the sliding window of "
            r"tiny_mistral, 48, .*give at most 48",
            id="sliding-window",
        ),
        pytest.param(
            (
                "recipe.stages.ard.streams.short.length=1023",
                "recipe.stages.ard.tokens_per_step=1023",
            ),
            2,
            r"streams\.short\.length: 1023 tokens .*sequence_parallel=2; give a multiple of 2",
            id="length",
        ),
        pytest.param(
            ("recipe.stages.ard.tokens=16389",),
            2,
            r"recipe\.stages\.ard\.tokens=16389 ends on a block of 5 tokens.*: give 16388 or 16390",
            id="last-block",
        ),
        pytest.param(
            ("objective.terms.relation.weights.av=0.5",),
            2,
            r"objective\.terms\.relation\.weights\.av=0\.5: it needs whole blocks",
            id="av",
        ),
        pytest.param(
            ("objective.terms.relation.relation_heads=4",),
            2,
            r"objective\.terms\.relation\.relation_heads=4: it needs whole blocks",
            id="relation-heads",
        ),
        pytest.param(
            (
                "+experiment=logit_kd_32k",
                "objective.terms.logit_distillation.last_tokens=512",
            ),
            2,
            r"objective\.terms\.logit_distillation\.last_tokens=512: it needs whole blocks",
            id="last-tokens",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(
    compose_run: Callable[..., RunConfig], overrides: tuple[str, ...], ranks: int, message: str
) -> None:
    replaced = any("experiment" in o for o in overrides)
    given = [*BASE[1 if replaced else 0 :], *overrides]
    with pytest.raises(ConfigError, match=message):
        plan.make(compose_run(*given), world_size=ranks)


def test_an_objective_that_says_nothing_of_parts_is_refused(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(*BASE)
    terms = run.objective.terms | {"relation": LastHidden()}
    changed = replace(run, objective=replace(run.objective, terms=terms))
    with pytest.raises(ConfigError, match=r"terms\.relation\.type=last_hidden: it needs whole"):
        plan.make(changed, world_size=2)


def test_a_window_that_no_block_exceeds_is_no_obstacle(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(
        "+experiment=linearard_32k",
        "model=mistral_7b",
        "~recipe.stages.cpt",
        "recipe.stages.ard.streams.short.length=4096",
        "engine.sequence_parallel=2",
    )
    assert plan.make(run, world_size=2).stages


def test_a_block_too_long_for_a_rank_is_to_be_shared(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(
        "+experiment=linearard_32k",
        "engine=zero1",
        "~recipe.stages.cpt",
        "rope.target_length=131072",
        "objective.allow_beyond_native=true",
        "recipe.stages.ard.streams.short.length=131072",
        "recipe.stages.ard.tokens_per_step=131072",
    )
    made = plan.make(run, world_size=2, device=ACCELERATORS["h100"])
    with pytest.raises(ConfigError, match=r"it fits with .*engine\.sequence_parallel=2 \("):
        check_fits(made, run)


def test_the_plan_says_who_shares_blocks(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(*BASE)
    made = plan.make(run, world_size=6)
    text = io.StringIO()
    show(made, run, Console(file=text))
    assert "each block is shared by 2 ranks; 3 such groups read blocks" in text.getvalue()
    # 16,384 tokens a step are four blocks, for three groups.
    assert made.stage("ard").accumulation == 2
    assert made.stage("ard").busy == pytest.approx(4 / 6)
