"""A run's course with fake engines: what it logs, saves, records and goes on from."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from src.manifest import verify
from src.models.config import ModelConfig
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.run_folder import RunFolder, whole_checkpoints
from src.training import stage, start
from src.training.engines import Engines
from src.training.run import FrozenTeacherError
from tests import fakes
from tests.conftest import by_default, losses

Train = Callable[..., Path]
RunHere = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def whole(train_fake: Train) -> Path:
    """A run that was never stopped: four steps of the first stage, two of the second."""
    return train_fake()


@pytest.fixture
def fake_engines(monkeypatch: pytest.MonkeyPatch) -> list[Engines]:
    """Engines are fake. The list is of those that the run has built."""
    built: list[Engines] = []

    def build(*given: Any, **more: Any) -> Engines:
        built.append(fakes.build_engines(*given, **more))
        return built[-1]

    monkeypatch.setattr(stage, "build_engines", build)
    return built


def test_each_step_is_logged_with_its_stage_and_all_tokens_so_far(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in lines] == [256, 512, 768, 1024, 1280, 1536]
    assert [line["stage"] for line in lines] == ["ard"] * 4 + ["cpt"] * 2
    assert all(line["loss/total"] == line["loss/distance"] for line in lines)
    record = RunFolder(whole).record()
    assert (record["state"], record["step"], record["tokens"]) == ("finished", 6, 1536)
    assert [(s["name"], s["steps"]) for s in record["stages"]] == [("ard", 4), ("cpt", 2)]


@pytest.mark.parametrize(
    ("every", "keep", "expected"),
    [(2, 2, ["step-4", "step-6"]), (3, 9, ["step-3", "step-4", "step-6"])],
)
def test_a_checkpoint_is_written_at_intervals_and_at_a_stages_end(
    train_fake: Train, every: int, keep: int, expected: list[str]
) -> None:
    folder = train_fake(f"checkpoint.every_steps={every}", f"checkpoint.keep={keep}")
    assert [path.name for path in whole_checkpoints(RunFolder(folder))] == expected


def test_a_stage_begins_with_what_the_one_before_it_exported(
    whole: Path, fake_engines: list[Engines], train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Path | None] = []
    build = stage.build_engines

    def noted(*given: Any, weights: Path | None = None, **more: Any) -> Engines:
        began.append(weights)
        return build(*given, weights=weights, **more)

    monkeypatch.setattr(stage, "build_engines", noted)
    folder = train_tiny()
    assert began == [None, folder / "export-ard"]
    assert losses(folder) == losses(whole)
    first, second = fake_engines
    assert isinstance(first.teacher, fakes.FakeTeacher)
    assert isinstance(second.teacher, fakes.FakeTeacher)
    # Blocks of 64 tokens one at a time; language modelling wants no teacher.
    assert (first.teacher.passes, second.teacher.passes) == (16, 0)


MERGE = "+merge@recipe.stages.merge=linear"


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def is_half(merged: Path, trained: Path, model: ModelConfig) -> bool:
    """Whether an export is the mean of another one and of the native model."""
    native = load_model(model, native_config(model), dtype=torch.float32).state_dict()
    ours, theirs = weights_of(merged), weights_of(trained)
    assert any(not ours[name].equal(native[name]) for name in ours)
    return all(ours[n].allclose((theirs[n] + native[n]) / 2, atol=1e-7) for n in ours)


def test_a_last_stage_that_merges(
    train_fake: Train, whole: Path, compose_run: Callable[..., Any]
) -> None:
    folder = train_fake(MERGE, "export.gguf=true")
    assert weights_of(folder / "export-cpt").keys() == weights_of(whole / "export").keys()
    assert is_half(folder / "export", folder / "export-cpt", compose_run("model=tiny").model)
    assert losses(folder) == losses(whole)
    made = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.gguf"))
    assert made == ["export/tiny-F16.gguf", "export/tiny-Q8_0.gguf"]
    verify(folder / "export")
    record = RunFolder(folder).record()
    assert (record["state"], record["step"], record["tokens"]) == ("finished", 6, 1536)
    stages = [(s["name"], s["tokens"], s["steps"]) for s in record["stages"]]
    assert stages[-1] == ("merge", 0, 0)


def test_a_stage_begins_with_the_merged_weights(
    compose_run: Callable[..., Any],
    tiny_overrides: list[str],
    fake_engines: list[Engines],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A merge between two stages, stopped and gone on with at the second one's first step."""
    settings = compose_run(*tiny_overrides, MERGE, f"run_dir={tmp_path / 'run'}")
    stages = settings.recipe.stages
    ordered = {name: stages[name] for name in ("ard", "merge", "cpt")}
    settings = replace(settings, recipe=replace(settings.recipe, stages=ordered))
    began: list[Path | None] = []
    build = stage.build_engines

    def noted(*given: Any, weights: Path | None = None, **more: Any) -> Engines:
        began.append(weights)
        if len(began) == 2:
            raise KeyboardInterrupt
        return build(*given, weights=weights, **more)

    monkeypatch.setattr(stage, "build_engines", noted)
    with pytest.raises(KeyboardInterrupt):
        start.train(settings, None)
    folder = tmp_path / "run"
    assert is_half(folder / "export-merge", folder / "export-ard", settings.model)
    start.resume(folder, None)
    # The newest checkpoint is the first stage's last: its export and the merge are made again.
    assert began == [None, folder / "export-merge", None, folder / "export-merge"]
    record = RunFolder(folder).record()
    assert (record["state"], record["step"], record["tokens"]) == ("finished", 6, 1536)
    assert [s["name"] for s in record["stages"]] == ["ard", "merge", "cpt"]


# Between two checkpoints of the first stage, and at its end.
@by_default(lambda stopped_at: stopped_at in (3, 4))
@pytest.mark.parametrize("stopped_at", [1, 3, 4, 5])
def test_a_stopped_run_resumes_to_the_same_bits(
    whole: Path,
    fake_engines: list[Engines],
    tiny_overrides: list[str],
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
    stopped_at: int,
) -> None:
    """The command gets SIGTERM as a step is logged, while the next one has been run already.

    Checkpoints are written every second step, and when the run is stopped.
    """
    folder = tmp_path / "run"
    log = RunFolder.log

    def log_and_stop(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        if entry["step"] == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_stop)
        stopped = run_here("src.train", *tiny_overrides, f"run_dir={folder}")
    assert stopped.returncode == 143
    assert f"error: interrupted by SIGTERM; go on with resume={folder}" in stopped.stderr
    assert RunFolder(folder).record()["state"] == "interrupted"
    done = len(losses(folder))
    assert stopped_at <= done <= stopped_at + 1
    saved = [path.name for path in whole_checkpoints(RunFolder(folder))]
    assert saved[-1] == f"step-{done}"
    resumed = run_here("src.train", f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {done}" in resumed.stderr
    assert losses(folder) == losses(whole)
    assert RunFolder(folder).record()["state"] == "finished"
    exported = [load_file(run / "export" / "model.safetensors") for run in (folder, whole)]
    assert all(exported[0][name].equal(exported[1][name]) for name in exported[1])
    again = run_here("src.train", f"resume={folder}")
    assert (again.returncode, "nothing is left to do" in again.stdout) == (0, True)


def test_a_run_on_packed_blocks_resumes_to_the_same_bits(
    tiny_overrides: list[str], tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real engines, with dropout. The run is stopped in each of its stages."""
    draw = random.Random(0)
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(80):
        text = "".join(draw.choices("abcdefgh ", k=draw.randint(5, 60)))
        (texts / f"t{i}.txt").write_text(f"{i}{text}")
    settings = [
        *tiny_overrides,
        f"data.sources.files.paths=[{texts}]",
        "data.held_out=[t1*]",
        "recipe.stages.ard.parameters.dropout=0.1",
    ]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    done = run_here("src.train", *settings, f"run_dir={whole}")
    assert done.returncode == 0, done.stderr
    streams = RunFolder(whole).record()["texts"]["streams"]
    assert all(s["packed_blocks"] == s["blocks"] for s in streams.values())
    log = RunFolder.log
    for stop, command in ((3, [*settings, f"run_dir={folder}"]), (5, [f"resume={folder}"])):

        def log_and_stop(self: RunFolder, entry: dict[str, Any], stop: int = stop) -> None:
            log(self, entry)
            if entry["step"] == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "log", log_and_stop)
            assert run_here("src.train", *command).returncode == 143
        assert RunFolder(folder).record()["state"] == "interrupted"
    resumed = run_here("src.train", f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    assert losses(folder) == losses(whole)
    mine, theirs = (weights_of(run / "export") for run in (folder, whole))
    assert all(mine[name].equal(theirs[name]) for name in theirs)


@pytest.mark.usefixtures("fake_engines")
def test_a_teacher_that_changes_fails_the_run(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = iter(["a" * 64, "b" * 64])
    monkeypatch.setattr(fakes.FakeTeacher, "sha256", lambda self: next(hashes))
    folder = tmp_path / "run"
    with pytest.raises(FrozenTeacherError, match=r"weights changed: sha256 a+ -> b+"):
        train_tiny(f"run_dir={folder}")
    record = RunFolder(folder).record()
    assert record["state"] == "failed"
    assert record["error"].startswith("FrozenTeacherError")
    assert record["teacher_sha256"] == {"before": "a" * 64, "after": "b" * 64}


@pytest.mark.usefixtures("fake_engines")
def test_a_loss_that_is_not_finite_fails_the_run(train_tiny: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"stage ard, step \d: .*lower the stage's lr"):
        train_tiny("recipe.stages.ard.lr=1e30", f"run_dir={folder}")
    record = RunFolder(folder).record()
    assert record["state"] == "failed"
    assert "FloatingPointError" in record["error"]
    assert not (folder / "export").exists()
