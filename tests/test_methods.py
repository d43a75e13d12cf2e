"""LongReD, logit distillation and sums, trained whole, however they are computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.models.hf_config import resolved_shape
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training import stage, start
from tests.conftest import ROOT, cut_after, losses
from tests.test_experiments import MIXTURE, SHORTER

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train_method(
    compose_run: Callable[..., RunConfig],
    prose: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Train:
    """train_method(experiment, *overrides) -> the folder of a run of the tiny model."""

    def run(experiment: str, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "run"
        settings = compose_run(
            f"+experiment={experiment}",
            "model=tiny",
            "data=files",
            f"data.sources.files.paths=[{prose}]",
            "data.held_out=[held-*]",
            "engine=cpu",
            "tracking=none",
            "eval=none",
            "seed=3",
            f"run_dir={folder}",
            *SHORTER[experiment],
            *overrides,
        )
        return start.train(settings, None)

    return run


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def longred(train_method: Train) -> Path:
    return train_method("longred_c_32k")


@pytest.fixture(scope="module")
def logit_kd(train_method: Train) -> Path:
    return train_method("logit_kd_32k", "recipe.stages.kd.parameters.dropout=0.0")


HOW = [
    pytest.param(
        [f"engine.student.zero_stage={z}", f"engine.teacher.zero_stage={t}"],
        id=f"zero-{z}-{t}",
        marks=pytest.mark.thorough,
    )
    for z, t in ((1, 0), (2, 3), (3, 0), (3, 3))
] + [
    pytest.param(
        ["engine.student.gradient_checkpointing=true"],
        id="checkpointing",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        [
            "engine.student.gradient_checkpointing=true",
            "engine.student.zero_stage=3",
            "engine.teacher.zero_stage=3",
        ],
        id="zero-3-3-checkpointing",
    ),
    pytest.param(["engine.student.micro_batch=2"], id="micro-batch-2"),
]


@pytest.mark.parametrize("how", HOW)
def test_longred_is_the_same_however_it_is_computed(
    train_method: Train, longred: Path, how: list[str]
) -> None:
    found = train_method("longred_c_32k", *how)
    assert losses(found) == pytest.approx(losses(longred), rel=1e-4)
    assert losses(found, "grad_norm") == pytest.approx(losses(longred, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("how", HOW[-2:])
def test_logit_distillation_is_the_same_however_it_is_computed(
    train_method: Train, logit_kd: Path, how: list[str]
) -> None:
    """In chunks of 50 tokens, so that heads run again in the backward pass."""
    found = train_method(
        "logit_kd_32k",
        "recipe.stages.kd.parameters.dropout=0.0",
        "objective.terms.logit_distillation.chunk=50",
        *how,
    )
    # Divergences of 1e-5 nats are differences of float32 numbers near 1.
    assert losses(found) == pytest.approx(losses(logit_kd), rel=1e-3, abs=2e-7)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_one_copy_of_the_weights_teaches_logits_as_well(
    train_method: Train, logit_kd: Path, zero_stage: int
) -> None:
    """A shared base is refused for the second stage only where that has a teacher."""
    found = train_method(
        "logit_kd_32k",
        "recipe.stages.kd.parameters.dropout=0.0",
        "engine.teacher.share_base=true",
        f"engine.student.zero_stage={zero_stage}",
    )
    assert losses(found) == pytest.approx(losses(logit_kd), rel=1e-3, abs=2e-7)


@pytest.mark.thorough
@pytest.mark.slow
def test_two_ranks_are_one(train_method: Train, longred: Path) -> None:
    found = train_method("longred_c_32k", "launch.nproc=2")
    assert losses(found) == pytest.approx(losses(longred), rel=1e-4)
    assert losses(found, "grad_norm") == pytest.approx(losses(longred, "grad_norm"), rel=1e-3)


def test_a_run_reports_each_streams_own_loss_and_weights_them(longred: Path) -> None:
    """A step of four equal slots: the loss is the mean of weight times loss over them."""
    first, second = entries(longred)
    # The pattern begins long, short, long, short | short-to-long, long, short, long.
    assert "loss/longred_last" not in first
    assert first["loss/total"] == pytest.approx(
        (2 * first["loss/language_modeling"] + 2 * 5 * first["loss/longred"]) / 4, rel=1e-5
    )
    assert second["loss/total"] == pytest.approx(
        (
            2 * second["loss/language_modeling"]
            + 5 * second["loss/longred"]
            + 10 * second["loss/longred_last"]
        )
        / 4,
        rel=1e-5,
    )
    by_layer = second["loss/longred/by_layer"]
    assert sum(by_layer) == pytest.approx(second["loss/longred"], rel=1e-5)
    assert len(by_layer) == 2, "layers 1 and 2 of the tiny model's two"


def test_the_teacher_is_in_no_optimizer_and_no_checkpoint(longred: Path) -> None:
    hashes = json.loads((longred / "run.json").read_text())["teacher_sha256"]
    assert hashes["before"] == hashes["after"]
    state = load_file(longred / "checkpoints" / "step-2" / "rank-0000.safetensors")
    weights = load_file(longred / "export" / "model.safetensors")
    own = sum(x.numel() for x in weights.values())
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        assert sum(x.numel() for key, x in state.items() if key.startswith(f"{kind}/")) == own
    assert not [name for name in state if "teacher" in name]
    files = (longred / "checkpoints" / "step-2").rglob("*")
    # Weights and two moments in float32: no room for a second model.
    assert sum(f.stat().st_size for f in files if f.is_file()) < 3.5 * 4 * own


def test_c_and_u_differ_in_one_field_and_its_losses(train_method: Train, longred: Path) -> None:
    other = train_method("longred_u_32k")
    first, second = zip(entries(longred), entries(other), strict=True)
    assert first[0]["loss/total"] == first[1]["loss/total"], "no skipped positions yet"
    assert second[0]["loss/longred_last"] != second[1]["loss/longred_last"]


def test_skipped_positions_are_resumed_to_the_bit(
    train_method: Train, longred: Path, tmp_path: Path
) -> None:
    whole = train_method("longred_c_32k", "budget=16384", "checkpoint.every_steps=1")
    cut = cut_after(whole, "step-3", tmp_path / "cut")
    start.resume(cut, None)
    assert losses(cut) == losses(whole)
    one, two = (load_file(f / "export" / "model.safetensors") for f in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_keeps_the_layers_that_were_chosen(
    train_method: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_method(
        "longred_c_32k",
        "objective.terms.longred.layers=drift",
        "objective.terms.longred.drift_count=3",
        "model.shape.layers=4",
        "budget=16384",
        "checkpoint.every_steps=1",
        "checkpoint.keep=9",
    )
    cut = cut_after(whole, "step-1", tmp_path / "cut")
    monkeypatch.setattr(stage, "measured_drift", lambda *_: pytest.fail("it was measured again"))
    start.resume(cut, None)
    assert losses(cut) == losses(whole)


ALWAYS_TOGETHER = {
    ("language_modeling", "pose"),
    ("longred_last", "cream"),
    ("longred_last", "uniform"),
    ("relation", "cream_reference"),
}


@pytest.mark.parametrize(
    ("objective", "positions"),
    [
        pytest.param(o, p, marks=() if (o, p) in ALWAYS_TOGETHER else pytest.mark.thorough)
        for o in ("language_modeling", "longred_last", "relation")
        for p in ("cream", "cream_reference", "uniform", "pose")
    ],
)
def test_any_objective_goes_with_any_positions(
    train_method: Train, objective: str, positions: str
) -> None:
    found = train_method(
        "longred_c_32k",
        "objective=[language_modeling,longred,longred_last,relation]",
        f"recipe.stages.mix.streams.s2l.objective={objective}",
        f"recipe.stages.mix.streams.s2l.positions={positions}",
    )
    assert len(losses(found)) == 2


def test_a_stream_may_have_a_weighted_sum(train_method: Train) -> None:
    shorter = ["rope.target_length=32768", "recipe.stages.ard.parameters.dropout=0.0"]
    terms = "objective=[relation,logit_distillation,language_modeling,longred]"
    stream = "recipe.stages.ard.streams.short.objective"
    weights = "{relation: 0.5, logit_distillation: 2.0, language_modeling: 0.1, longred: 3.0}"
    found = entries(train_method("linearard_32k", terms, f"{stream}={weights}", *shorter))
    for line in found[:2]:
        expected = (
            0.5 * sum(line[f"loss/relation/{n}"] for n in ("qq", "kk", "vv"))
            + 2.0 * line["loss/logit_distillation"]
            + 0.1 * line["loss/language_modeling"]
            + 3.0 * line["loss/longred"]
        )
        assert line["loss/total"] == pytest.approx(expected, rel=1e-4)
    again = train_method(
        "linearard_32k",
        terms,
        f"{stream}={weights}",
        *shorter,
        "engine.student.gradient_checkpointing=true",
        "engine.student.zero_stage=3",
        "engine.teacher.keep=layer_inputs",
    )
    assert losses(again) == pytest.approx([line["loss/total"] for line in found], rel=1e-4)


def test_layers_are_chosen_by_measured_drift(train_method: Train, longred: Path) -> None:
    deep = ["model.shape.layers=4", "objective.terms.longred.drift_count=3"]
    chosen = train_method("longred_c_32k", "objective.terms.longred.layers=drift", *deep)
    drift = json.loads((chosen / "run.json").read_text())["attention_drift"]["mix"]
    assert len(drift) == 4
    assert all(value > 0 for value in drift)
    ranked = sorted(range(3), key=lambda i: -drift[i])[:2]
    listed = [*sorted(i + 1 for i in ranked), 4]
    same = train_method("longred_c_32k", f"objective.terms.longred.layers={listed}", *deep)
    assert losses(chosen) == losses(same)
    assert "attention_drift" not in json.loads((longred / "run.json").read_text())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective.terms.longred.layers=[9]"],
            r"objective\.terms\.longred\.layers=\[9\]: give .* to 2",
        ),
        (
            ["objective.terms.longred.layers=drift"],
            r"objective\.terms\.longred\.drift_count=6: the model has 2 layers",
        ),
        (
            ["recipe.stages.mix.streams.short.objective={longred: 1.0, guess: 2.0}"],
            r"streams\.short\.objective: 'guess' is not configured; objective\.terms has",
        ),
        (
            ["recipe.stages.mix.streams.short.objective={longred: -1.0}"],
            r"streams\.short\.objective.*greater than 0",
        ),
        (
            ["recipe.stages.mix.streams.s2l.positions=skip"],
            r"streams\.s2l\.positions: .*'cream'",
        ),
        (
            ["recipe.stages.mix.streams.s2l.length=512"],
            r"streams\.s2l\.length: 512 tokens exceed the native window",
        ),
        (
            ["recipe.stages.mix.streams.s2l.length=2", "recipe.stages.mix.slot_tokens=1024"],
            r"streams\.s2l: positions=cream needs blocks of 3 tokens or more",
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_refused_before_anything_is_loaded(
    compose_run: Callable[..., RunConfig], overrides: list[str], message: str
) -> None:
    from src.planning import plan

    def planned() -> None:
        settings = compose_run("+experiment=longred_c_32k", "model=tiny", *MIXTURE, *overrides)
        plan.make(settings, world_size=1)

    with pytest.raises(ConfigError, match=message):
        planned()


def test_the_small_models_real_experiments_plan(compose_run: Callable[..., RunConfig]) -> None:
    """The files of both baselines differ in one value."""
    from src.planning import plan

    one, two = (
        compose_run(f"+experiment=longred_{kind}_32k", "model=smollm2_135m") for kind in "cu"
    )
    assert one.recipe.stages["mix"].streams["s2l"].positions == "cream"
    assert two.recipe.stages["mix"].streams["s2l"].positions == "uniform"
    streams = dict(two.recipe.stages["mix"].streams)
    assert streams.pop("s2l").positions == "uniform"
    assert streams.items() <= one.recipe.stages["mix"].streams.items()
    made = plan.make(one, world_size=1).stages[0]
    assert (made.tokens, made.steps) == (4_456_448, 34)
    assert resolved_shape(one.model).layers == 30
    assert (ROOT / "conf" / "experiment" / "longred_u_32k.yaml").read_text().count(
        "positions:"
    ) == 1
