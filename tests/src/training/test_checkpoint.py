"""Checkpoints that are written in a thread while training goes on, as on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.run_folder import RunFolder, whole_checkpoints
from src.training import checkpoint
from src.training.checkpoint import SaveError, verified


@pytest.fixture
def in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_writes_in_background", lambda parts: True)


def _names(folder: RunFolder) -> list[str]:
    return [path.name for path in whole_checkpoints(folder)]


@pytest.mark.usefixtures("in_background")
def test_training_goes_on_while_a_checkpoint_is_written(
    train_fake: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write, seen = RunFolder(tmp_path / "run"), checkpoint.write, []

    def slow(*arguments: Any) -> Any:
        before = len(folder.metrics())
        deadline = time.monotonic() + 10
        while not seen and len(folder.metrics()) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append((before, len(folder.metrics())))
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", slow)
    train_fake(f"run_dir={folder.path}", "checkpoint.every_steps=2", "checkpoint.keep=10")
    assert folder.record()["state"] == "finished"
    assert seen[0][1] > seen[0][0], "steps were logged while the first one was written"
    chosen, skipped = verified(folder)
    assert chosen is not None
    assert (chosen.position.step, skipped) == (folder.record()["step"], [])
    for path in whole_checkpoints(folder):
        lines = (path / "metrics.jsonl").read_text().splitlines()
        assert path.name == f"step-{len(lines)}", "its records are those of its step"


def test_it_holds_what_one_that_training_waits_for_holds(
    train_fake: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, bytes]] = []
    for background in (False, True):
        monkeypatch.setattr(checkpoint, "_writes_in_background", lambda parts, b=background: b)
        folder = RunFolder(tmp_path / str(background))
        train_fake(f"run_dir={folder.path}", "checkpoint.every_steps=2", "checkpoint.keep=10")
        files = sorted(folder.checkpoints.rglob("*.safetensors"))
        made.append({str(f.relative_to(folder.path)): f.read_bytes() for f in files})
    assert made[0] == made[1]


@pytest.mark.usefixtures("in_background")
def test_one_that_could_not_be_written_ends_the_run_at_the_next(
    train_fake: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write, calls = RunFolder(tmp_path / "run"), checkpoint.write, []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", failing)
    with pytest.raises(SaveError, match=r"No space left.*go on with resume="):
        train_fake(f"run_dir={folder.path}", "checkpoint.every_steps=2", "checkpoint.keep=10")
    assert folder.record()["state"] == "failed"
    assert _names(folder) == ["step-2"]
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-2"]
    assert folder.record()["step"] == 2, "the record names the newest checkpoint"
