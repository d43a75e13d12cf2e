"""Flipped bits and cut files: each is noticed or without effect, and the run goes on."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from src.run_folder import RunFolder, unsealed
from src.training import checkpoint
from tests import fakes
from tests.conftest import by_default, losses

RunHere = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def whole(train_fake: Callable[..., Path]) -> Path:
    """An undisturbed run. Checkpoint 5 is in the second stage, which began with export-ard."""
    return train_fake("checkpoint.every_steps=1", "checkpoint.keep=9")


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The run as it was when it had been killed after checkpoint 5."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for gone in ("checkpoints/step-6", "export"):
        shutil.rmtree(folder / gone)
    for step in (1, 2, 3):
        shutil.rmtree(folder / "checkpoints" / f"step-{step}")
    record = load_record(folder / "checkpoints" / "step-5")
    (folder / "run.json").write_bytes(record)
    config = (folder / "config.yaml").read_text().replace(str(whole), str(folder))
    (folder / "config.yaml").write_text(config)
    return folder


def load_record(folder: Path) -> bytes:
    return (folder / "run.json").read_bytes()


def files(folder: Path) -> list[Path]:
    """Every file that going on from checkpoint 5 depends on."""
    kept = [folder / "checkpoints" / "step-5", folder / "export-ard"]
    inside = [file for each in kept for file in sorted(each.rglob("*")) if file.is_file()]
    return [*inside, folder / "run.json", folder / "metrics.jsonl"]


def damages(folder: Path, number: int, seed: int = 20) -> Iterator[tuple[Path, bytes]]:
    """Files in turn, each with a flipped bit, or cut at a random place."""
    draw = random.Random(seed)
    for turn in range(number):
        file = files(folder)[turn % len(files(folder))]
        content = bytearray(file.read_bytes())
        place = draw.randrange(len(content))
        if draw.random() < 0.5:
            content[place] ^= 1 << draw.randrange(8)
            yield file, bytes(content)
        else:
            yield file, bytes(content[:place])


@pytest.mark.parametrize("number", [40, pytest.param(200, marks=pytest.mark.thorough)])
def test_every_damage_is_noticed_or_without_effect(stopped: Path, number: int) -> None:
    """`test_run.py` shows that both checkpoints 4 and 5 lead to the same bits."""
    folder, skipped = RunFolder(stopped), 0
    copied = (stopped / "checkpoints" / "step-5" / "metrics.jsonl").read_bytes()
    for file, damaged in damages(stopped, number):
        good = file.read_bytes()
        file.write_bytes(damaged)
        what = f"{file.relative_to(stopped)}: {len(good)} -> {len(damaged)} bytes"
        said = checkpoint.restore_records(folder)
        chosen, reasons = checkpoint.verified(folder)
        assert chosen is not None, what
        if file.parent.name in ("step-5", "export-ard") or "export-ard" in file.parts:
            if chosen.path.name == "step-5":  # as the last newline of a manifest
                assert file.name == "manifest.json", what
            else:
                assert chosen.path.name == "step-4", what
                assert reasons, what
                skipped += 1
                aside = stopped / "checkpoints" / "step-5.damaged"
                aside.rename(stopped / "checkpoints" / "step-5")
        elif file.name == "run.json":
            assert said or folder.record() == unsealed(json.loads(good)), what
            assert folder.record()["state"] == "running", what
        else:
            checkpoint.restore_metrics(folder, chosen)
            assert folder.metrics_file.read_bytes() == copied, what
        file.write_bytes(good)
    assert skipped > number * 0.8


@pytest.mark.parametrize("number", range(40))
@by_default(lambda number: number in (3, 25))
def test_a_damaged_run_ends_with_the_weights_of_the_undisturbed_one(
    whole: Path, stopped: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("src.training.stage.build_engines", fakes.build_engines)
    file, damaged = list(damages(stopped, number + 1, seed=number))[-1]
    file.write_bytes(damaged)
    done = run_here("src.train", f"resume={stopped}")
    assert done.returncode == 0, done.stderr
    assert losses(stopped) == losses(whole)
    one, other = (load_file(run / "export" / "model.safetensors") for run in (stopped, whole))
    assert all(one[name].equal(other[name]) for name in other)
