"""Whole runs of the tiny model: what they leave behind, and that they repeat, resume and refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.models.hf_config import native_config
from src.models.loading import load_model
from src.planning import plan
from src.planning.checks import check_launch
from src.planning.devices import DeviceFacts
from src.progress import Laps
from src.run_folder import RunFolder, RunFolderError, whole_checkpoints
from src.settings.config import LaunchConfig, RunConfig
from src.settings.strict import ConfigError
from src.training import start
from src.training.checkpoint import Checkpoint, CheckpointError, Position
from tests import fakes
from tests.conftest import ROOT, by_default, cut_after, kill_when, losses

Train = Callable[..., Path]
RunHere = Callable[..., subprocess.CompletedProcess[str]]


# The first of the tiny run's six steps.
ONE_STEP = ("recipe.stages.ard.tokens=256", "~recipe.stages.cpt")


@pytest.fixture(scope="module")
def baseline(train_tiny: Train) -> Path:
    return train_tiny("recipe.stages.ard.parameters.dropout=0.1")


@pytest.fixture(scope="module")
def golden_run(train_tiny: Train) -> Path:
    return train_tiny()


def test_run_folder_is_complete_and_valid(baseline: Path) -> None:
    record = json.loads((baseline / "run.json").read_text())
    assert record["state"] == "finished"
    assert record["error"] is None
    assert (record["tokens"], record["step"], record["seed"]) == (1536, 6, 3)
    assert [(s["name"], s["tokens"], s["steps"]) for s in record["stages"]] == [
        ("ard", 1024, 4),
        ("cpt", 512, 2),
    ]
    assert {"torch", "transformers", "deepspeed"} <= record["versions"].keys()
    assert record["data_fingerprint"].keys() == {"ard/short", "cpt/long"}
    assert all(len(value) == 64 for value in record["data_fingerprint"].values())
    config = yaml.safe_load((baseline / "config.yaml").read_text())
    assert config["recipe"]["stages"]["ard"]["lr"] == 1e-3, "interpolations are resolved"
    lines = [json.loads(line) for line in (baseline / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in lines] == [256, 512, 768, 1024, 1280, 1536]
    assert [line["stage"] for line in lines] == ["ard"] * 4 + ["cpt"] * 2
    assert {"loss/total", "loss/relation/qq", "lr", "grad_norm"} <= lines[0].keys()
    assert [p.name for p in whole_checkpoints(RunFolder(baseline))] == ["step-4", "step-6"]


FAMILY_RUNS = {
    "tiny_mistral": ("rope=linear", "lora"),
    "tiny_qwen2": ("rope=llama3", "rslora"),
    "tiny_qwen3": ("rope=ntk", "lora"),
    "tiny_gemma3": ("rope=yarn", "dora"),
}


@pytest.mark.parametrize("model", FAMILY_RUNS)
@by_default(lambda model: model in ("tiny_qwen2", "tiny_gemma3"))
def test_runs_of_other_families_train_and_export(train_tiny: Train, model: str) -> None:
    rope, kind = FAMILY_RUNS[model]
    folder = train_tiny(
        f"model={model}",
        rope,
        f"parameters@recipe.stages.ard.parameters={kind}",
        "engine.teacher.keep=layer_inputs",
        "engine.student.gradient_checkpointing=true",
    )
    distilled, modelled = losses(folder, "loss/relation/qq"), losses(folder)[4:]
    assert len(distilled) == 4
    assert all(0 < loss < 1 for loss in distilled)
    assert len(modelled) == 2
    assert all(0 < loss < 10 for loss in modelled)
    hashes = json.loads((folder / "run.json").read_text())["teacher_sha256"]
    assert hashes["before"] == hashes["after"]
    exported = AutoModelForCausalLM.from_pretrained(folder / "export")
    assert exported(input_ids=torch.arange(20)[None]).logits.isfinite().all()


def test_teacher_is_unchanged_and_in_no_checkpoint(baseline: Path) -> None:
    hashes = json.loads((baseline / "run.json").read_text())["teacher_sha256"]
    assert hashes["before"] == hashes["after"]
    with Checkpoint(
        baseline / "checkpoints" / "step-4", Position(4, "ard", 4, 1024, 1)
    ).state() as s:
        names = s.names() - {""}
    assert names, "adapters are saved"
    assert all("lora_" in name for name in names), "and nothing that is frozen"
    saved = (baseline / "checkpoints" / "step-4" / "rank-0000.safetensors").stat().st_size
    assert saved < 3 * 4 * 1280 + 8192, "weights and two moments of 1,280 trained numbers"


def test_export_loads_generates_and_carries_the_scaling(baseline: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(baseline / "export")
    assert model.config.rope_parameters == {
        "rope_type": "linear",
        "factor": 4.0,
        "rope_theta": 10000.0,
    }
    assert model.config.max_position_embeddings == 32768
    assert model.model.rotary_emb.inv_freq[0] == 0.25
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    tokenizer = AutoTokenizer.from_pretrained(baseline / "export")
    ids = tokenizer("hello", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=5, do_sample=False).shape == (1, 10)
    card = (baseline / "export" / "README.md").read_text()
    assert "1,536 tokens" in card
    assert "captured" not in (baseline / "export" / "config.json").read_text()


def test_same_seed_gives_the_same_bits(baseline: Path, train_tiny: Train) -> None:
    again = train_tiny("recipe.stages.ard.parameters.dropout=0.1")
    assert losses(again) == losses(baseline)
    assert losses(again, "grad_norm") == losses(baseline, "grad_norm")
    one, two = (
        AutoModelForCausalLM.from_pretrained(path / "export").state_dict()
        for path in (baseline, again)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_seed_gives_other_losses(golden_run: Path, train_tiny: Train) -> None:
    assert losses(train_tiny("seed=4")) != losses(golden_run)


GOLDEN = ROOT / "tests" / "golden" / "tiny_losses.json"


def test_loss_curve_is_the_golden_one(golden_run: Path) -> None:
    """A change that moves this curve changes training: regenerate with UPDATE_GOLDEN=1, say why.

    Processors differ in the last bits, so the comparison across machines is to float32 rounding.
    """
    curve = list(losses(golden_run))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(curve, indent=2) + "\n", encoding="utf-8")
    assert curve == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(
            [f"engine.student.zero_stage={z}", f"engine.teacher.zero_stage={t}"],
            id=f"zero-{z}-{t}",
            marks=marks,
        )
        for z, t, marks in (
            (1, 0, ()),
            (2, 3, ()),
            (3, 0, pytest.mark.thorough),
            (3, 3, pytest.mark.thorough),
        )
    ]
    + [
        pytest.param(["engine.student.gradient_checkpointing=true"], id="checkpointing"),
        pytest.param(["engine.teacher.keep=layer_inputs"], id="layer-inputs"),
        pytest.param(
            [
                "engine.student.zero_stage=3",
                "engine.teacher.zero_stage=3",
                "engine.student.gradient_checkpointing=true",
            ],
            id="zero-3-3-checkpointing",
        ),
        pytest.param(
            [
                "engine.student.zero_stage=3",
                "engine.student.offload_parameters=true",
                "engine.teacher.zero_stage=3",
                "engine.teacher.offload_parameters=true",
            ],
            id="offloaded-parameters",
        ),
        pytest.param(
            ["engine.student.micro_batch=2"], id="micro-batch-2", marks=pytest.mark.thorough
        ),
        pytest.param(["engine.student.micro_batch=3"], id="micro-batch-3"),
        pytest.param(["objective.terms.relation.backend=reference"], id="reference-kernel"),
    ],
)
def test_how_it_is_computed_does_not_change_the_losses(
    train_tiny: Train, overrides: list[str]
) -> None:
    assert losses(train_tiny(*overrides)) == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its AdamW for CPUs")
@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.student.zero_stage=1"],
        ["engine.student.zero_stage=2"],
        ["engine.student.zero_stage=3"],
        [
            "engine.student.zero_stage=3",
            "engine.student.offload_parameters=true",
            "engine.teacher.zero_stage=3",
            "engine.teacher.offload_parameters=true",
        ],
    ],
    ids=["zero-1", "zero-2", "zero-3", "everything"],
)
def test_an_offloaded_optimizer_has_the_same_losses(
    train_tiny: Train, overrides: list[str]
) -> None:
    curve = losses(train_tiny("engine.student.offload_optimizer=true", *overrides))
    assert curve == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


@pytest.mark.parametrize(
    ("compiler", "shape"),
    [
        # One stage, one layer, no back end: that takes minutes where nothing is cached.
        pytest.param(
            "aot_eager", ["model.shape.layers=2", "~recipe.stages.cpt"], id="traced-one-stage"
        ),
        pytest.param("inductor", ["model.shape.layers=3"], id="two", marks=pytest.mark.thorough),
        pytest.param(
            "inductor",
            ["model.shape.layers=3", "engine.teacher.share_base=true"],
            id="shared",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_compiled_layers_have_the_same_losses(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, compiler: str, shape: list[str]
) -> None:
    """The last layer stays as it is, since passes may stop there."""
    if compiler == "inductor" and shutil.which("g++") is None:
        pytest.skip("compiling needs g++ on a CPU")
    compiling = torch.compile
    compiled_layers = []

    def noted(forward: Callable[..., object], **settings: object) -> object:
        compiled_layers.append(forward)
        return compiling(forward, backend=compiler, **settings)

    monkeypatch.setattr(torch, "compile", noted)
    curve = losses(train_tiny("engine.compile=true", *shape))
    assert compiled_layers
    assert curve == pytest.approx(losses(train_tiny(*shape)), rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], id="float32", marks=pytest.mark.thorough),
        pytest.param(["engine.dtype=bfloat16"], id="bfloat16", marks=pytest.mark.thorough),
        pytest.param(
            ["engine.student.gradient_checkpointing=true"],
            id="checkpointing",
            marks=pytest.mark.thorough,
        ),
        pytest.param(["engine.student.zero_stage=2"], id="zero-2", marks=pytest.mark.thorough),
        pytest.param(
            # test_engine.py has such weights on one copy by default.
            ["engine.student.zero_stage=3", "engine.student.gradient_checkpointing=true"],
            id="zero-3-checkpointing",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            ["recipe.stages.ard.parameters.dropout=0.1", "engine.teacher.keep=layer_inputs"],
            id="dropout",
        ),
    ],
)
def test_one_copy_of_the_weights_gives_the_bits_of_two(
    train_tiny: Train, overrides: list[str]
) -> None:
    two = train_tiny(*overrides)
    one = train_tiny("engine.teacher.share_base=true", *overrides)
    assert losses(one) == losses(two)
    hashes = json.loads((one / "run.json").read_text())["teacher_sha256"]
    assert hashes["before"] == hashes["after"]


def test_a_mixture_logs_each_streams_own_loss(train_tiny: Train, golden_run: Path) -> None:
    """Half of a step's tokens are relation blocks, half language modelling at weight 0.5."""
    stream = "{objective: language_modeling, length: 128, weight: 0.5}"
    folder = train_tiny(
        "+recipe.stages.ard.streams.short.share=2", f"+recipe.stages.ard.streams.long={stream}"
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines[:4]:
        relation = sum(line[f"loss/relation/{name}"] for name in ("qq", "kk", "vv"))
        expected = 0.5 * relation + 0.5 * 0.5 * line["loss/language_modeling"]
        assert line["loss/total"] == pytest.approx(expected, rel=1e-5)
    alone = losses(golden_run, "loss/relation/qq")
    assert lines[0]["loss/relation/qq"] == pytest.approx(alone[0], rel=0.5)


@pytest.mark.parametrize(
    ("zero_stage", "accumulate_in"),
    [
        *(
            pytest.param(stage, summed_in, marks=pytest.mark.thorough)
            for stage, summed_in in ((0, "auto"), (1, "auto"), (1, "bfloat16"), (2, "auto"))
        ),
        (2, "bfloat16"),
        (3, "auto"),
    ],
)
def test_bfloat16_follows_float32(train_tiny: Train, zero_stage: int, accumulate_in: str) -> None:
    curve = losses(
        train_tiny(
            "engine.dtype=bfloat16",
            f"engine.student.zero_stage={zero_stage}",
            f"engine.student.accumulate_in={accumulate_in}",
        )
    )
    assert curve == pytest.approx(json.loads(GOLDEN.read_text()), rel=0.1)


def test_relation_loss_starts_at_zero_without_scaling(train_tiny: Train) -> None:
    native = losses(train_tiny("rope.target_length=8192", *ONE_STEP))
    scaled = losses(train_tiny("rope.target_length=65536", *ONE_STEP))
    assert abs(native[0]) < 1e-6
    assert scaled[0] > 1e-5


def test_a_stage_trains_what_it_is_told(
    compose_run: Callable[..., RunConfig], tiny_overrides: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = compose_run(
        *(o for o in tiny_overrides if "dropout" not in o),
        f"run_dir={folder}",
        "parameters@recipe.stages.ard.parameters=full",
        "parameters@recipe.stages.cpt.parameters=lora",
    )
    start.train(run, None)
    stages = RunFolder(folder).config()["recipe"]["stages"]
    assert list(stages) == ["ard", "cpt"]
    assert stages["ard"]["parameters"] == {"type": "full"}
    config = native_config(run.model)
    first = load_model(run.model, config, dtype=torch.float32).state_dict()
    second, third = (
        AutoModelForCausalLM.from_pretrained(folder / name).state_dict()
        for name in ("export-ard", "export")
    )
    in_full = {name for name in first if not torch.equal(first[name], second[name])}
    adapted = {name for name in second if not torch.equal(second[name], third[name])}
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= in_full
    assert adapted
    assert all(name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") for name in adapted)


def test_a_rerun_without_a_checkpoint_starts_anew(
    compose_run: Callable[..., RunConfig],
    tiny_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("src.training.stage.build_engines", fakes.build_engines)
    folder = tmp_path / "run"
    settings = compose_run(*tiny_overrides, f"run_dir={folder}")
    RunFolder.create(folder, config={}, record={"run_id": "old"})
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/total": 9}\n')
    start.train(settings, None)
    assert len(losses(folder)) == 6
    with pytest.raises(RunFolderError, match="holds a run with checkpoints: go on with resume="):
        start.train(settings, None)


@pytest.mark.integration
@pytest.mark.slow
def test_kill_and_resume_gives_the_same_bits(
    baseline: Path,
    tiny_overrides: list[str],
    tmp_path: Path,
    run_here: RunHere,
    start_command: Callable[..., subprocess.Popen[str]],
) -> None:
    folder = tmp_path / "run"
    dropout = "recipe.stages.ard.parameters.dropout=0.1"
    process = start_command("-m", "src.train", *tiny_overrides, dropout, f"run_dir={folder}")
    kill_when(process, lambda: (folder / "checkpoints" / "step-2").is_dir(), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while RunFolder(folder).record()["state"] == "running":
        assert time.monotonic() < deadline, "the witness has said nothing"
        time.sleep(0.1)
    record = RunFolder(folder).record()
    assert record["state"] == "interrupted"
    assert f"go on with resume={folder}" in record["error"]
    resumed = run_here("src.train", f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(folder) == losses(baseline)
    assert RunFolder(folder).record()["state"] == "finished"


def just_begun(run: Path, folder: Path) -> dict[str, Any]:
    """A copy of a run as it was before its first checkpoint; returns its config."""
    folder.mkdir()
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"run_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record = json.loads((run / "run.json").read_text()) | {"state": "running", "seconds": 0.0}
    (folder / "run.json").write_text(json.dumps(record))
    return config


def test_offloading_without_a_compiler_is_refused(
    compose_run: Callable[..., RunConfig],
    tiny_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    offloaded = ("engine.student.zero_stage=1", "engine.student.offload_optimizer=true")
    settings = compose_run(*tiny_overrides, *offloaded, f"run_dir={tmp_path / 'run'}")
    with pytest.raises(ConfigError, match=r"offload_optimizer: .* compiler no-such-compiler can"):
        start.train(settings, None)
    assert not (tmp_path / "run").exists()


def test_resume_on_other_texts_is_refused(baseline: Path, prose: Path, tmp_path: Path) -> None:
    folder, texts = tmp_path / "run", tmp_path / "texts"
    settings = just_begun(baseline, folder)
    shutil.copytree(prose, texts)
    settings["data"]["sources"]["files"]["paths"] = [str(texts)]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    first = min(path for path in texts.iterdir() if not path.name.startswith("held"))
    first.write_text(first.read_text() + " one more word")
    with pytest.raises(ConfigError, match=r"data: the texts .* no longer those that .*/run began"):
        start.resume(folder, None)
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"


def test_resume_without_a_checkpoint_starts_over_and_says_so(
    baseline: Path, tmp_path: Path, run_here: RunHere
) -> None:
    folder = tmp_path / "run"
    just_begun(baseline, folder)
    resumed = run_here("src.train", f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    assert "from the start: it has no whole checkpoint" in resumed.stderr
    assert losses(folder) == losses(baseline)


def test_resume_takes_no_other_settings(baseline: Path, run_here: RunHere) -> None:
    refused = run_here("src.train", f"resume={baseline}", "seed=1")
    assert refused.returncode == 2
    assert "goes on with the run's own config; drop seed=1" in refused.stderr


def test_a_checkpoint_that_cannot_be_read_is_skipped_and_named(
    baseline: Path, tmp_path: Path, run_here: RunHere
) -> None:
    folder = cut_after(baseline, "step-4", tmp_path / "run")
    shutil.copytree(folder / "checkpoints" / "step-4", folder / "checkpoints" / "step-6")
    done = run_here("src.train", f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert "skipped checkpoints/step-6: it holds step 4" in done.stderr
    assert "run.json is damaged" in done.stderr
    assert f"resuming {folder} from step 4" in done.stderr
    assert losses(folder) == losses(baseline)


def test_checkpoints_of_other_settings_are_refused(baseline: Path, tmp_path: Path) -> None:
    folder = cut_after(baseline, "step-4", tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("seed: 3", "seed: 4"))
    with pytest.raises(
        CheckpointError, match=r"config\.yaml: .*step-4 was written with other sett"
    ):
        start.resume(folder, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(["sed=1"], "sed: unknown key 'sed'; did you mean 'seed'?", id="typo"),
        pytest.param(
            ["recipe.stages.ard.tokens=-5"], "greater than 0 (got -5)", id="negative-budget"
        ),
        pytest.param(
            [
                "recipe.stages.ard.streams.short.length=16384",
                "recipe.stages.ard.tokens_per_step=16384",
            ],
            "exceed the native window of tiny, 8192",
            id="beyond-native",
        ),
        pytest.param(
            ["data.sources.files.paths=[/no/such.txt]"], "/no/such.txt", id="missing-file"
        ),
        pytest.param(["data.sources.files.paths=[{bad}]"], "bad.txt", id="unreadable-text"),
        pytest.param(["data.sources.files.paths=[{empty}]"], "empty", id="empty-corpus"),
        pytest.param(
            [
                "recipe.stages.ard.streams.short.length=8192",
                "recipe.stages.ard.tokens_per_step=8192",
                "data.packing=false",
            ],
            "longest",
            id="too-short-text",
        ),
        pytest.param(["data.held_out=[nobody*]"], "nobody*", id="held-out-nothing"),
        pytest.param(
            ["eval=perplexity", "eval.perplexity.windows=[8192]", "eval.perplexity.headline=8192"],
            "needs 8192 tokens of running text, but the longest held-out document has",
            id="short-held-out",
        ),
        pytest.param(
            ["launch.nproc=2", "engine.device=cuda"],
            "engine.device",
            id="no-gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_a_users_mistake_is_one_message_and_leaves_nothing(
    tiny_overrides: list[str],
    tmp_path: Path,
    run_here: RunHere,
    overrides: list[str],
    message: str,
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 noir")
    (tmp_path / "empty.txt").write_text("")
    paths = {"bad": tmp_path / "bad.txt", "empty": tmp_path / "empty.txt"}
    filled = [o.format(**paths) if "{" in o else o for o in overrides]
    folder = tmp_path / "deep" / "run"
    refused = run_here("src.train", *tiny_overrides, f"run_dir={folder}", *filled)
    assert refused.returncode == 2, refused.stderr
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not folder.parent.exists()


def test_a_folder_that_is_no_run_is_refused(
    tiny_overrides: list[str], compose_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        start.train(compose_run(*tiny_overrides, f"run_dir={tmp_path}"), None)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_folder_that_is_being_run_is_left_alone(
    tiny_overrides: list[str], compose_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = compose_run(*tiny_overrides, f"run_dir={folder}")
    with start._held(folder):
        RunFolder.create(folder, config={}, record={"run_id": "live"})
        with pytest.raises(RunFolderError, match="is being run by another process"):
            start.train(settings, None)
    assert RunFolder(folder).record()["run_id"] == "live"


@pytest.mark.parametrize("by", ["torchrun", "deepspeed", "slurm"])
def test_a_launcher_that_has_not_started_this_process_is_named(by: str) -> None:
    asked = LaunchConfig(by, nproc=4, nodes=2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"launch\.by: {by} has not .* type \w+ .*2.*4.*train"):
        check_launch(asked, None, dry_run=False)
    check_launch(asked, None, dry_run=True)
    check_launch(asked, 8, dry_run=False)
    with pytest.raises(ConfigError, match=r"2 x 4 ranks are asked for and 2 have been started"):
        check_launch(asked, 2, dry_run=False)


def test_several_machines_need_a_launcher(compose_run: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"launch: nodes=2 needs a launcher"):
        compose_run("model=tiny", "launch.nodes=2")
    run = compose_run("model=tiny", "launch=slurm", "launch.nodes=2")
    assert run.launch.ranks == 16


def test_dry_run_starts_nothing(tmp_path: Path, run_here: RunHere) -> None:
    planned = run_here(
        "src.train", "+experiment=linearard_32k", "dry_run=true", f"run_dir={tmp_path / 'run'}"
    )
    assert planned.returncode == 0
    assert "2,359,296 + 2,097,152 = 4,456,448 in 144 + 64 optimizer steps" in planned.stdout
    assert not (tmp_path / "run").exists()


def test_preparing_starts_nothing(
    tmp_path: Path, tiny_overrides: list[str], run_here: RunHere
) -> None:
    done = run_here("src.train", *tiny_overrides, "prepare=true", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "all that is read is in" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_fit_is_refused_before_anything_is_made(
    tiny_overrides: list[str],
    compose_run: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("src.training.stage.build_engines", fakes.build_engines)
    monkeypatch.setattr(
        plan, "device_facts", lambda *a, **k: DeviceFacts("a toy", 2**20, is_cpu=True)
    )
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"stage \w+ needs .* allow_oversubscribe=true"):
        start.train(compose_run(*tiny_overrides, f"run_dir={folder}"), None)
    assert not folder.exists()
    start.train(compose_run(*tiny_overrides, f"run_dir={folder}", "allow_oversubscribe=true"), None)
    assert RunFolder(folder).record()["state"] == "finished"


def test_more_ranks_than_gpus_are_refused(
    compose_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = (DeviceFacts("a GPU", 2**40),)
    monkeypatch.setattr("src.planning.devices.gpus", lambda: one)
    monkeypatch.setattr("src.planning.checks.gpus", lambda: one)
    with pytest.raises(ConfigError, match=r"launch\.nproc: 2 ranks .* has 1"):
        start._preflight(compose_run("model=tiny", "launch.nproc=2"), Laps())


def test_settings_for_cuda_without_a_gpu_are_refused(compose_run: Callable[..., RunConfig]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(ConfigError, match=r"engine\.device"):
        start._preflight(compose_run("model=tiny", "engine.device=cuda"), Laps())
