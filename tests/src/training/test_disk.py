"""A disk that is full or fails, at each write of a run: records, metrics, saves and exports."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from src.run_folder import RunFolder
from src.training import checkpoint
from src.training.checkpoint import SaveError
from tests.conftest import ROOT

HERE = Path(__file__).parent


@pytest.fixture
def cases(tmp_path: Path, tiny_overrides: list[str]) -> Callable[[list[str]], list[dict[str, Any]]]:
    """What became of runs, one after the other in one process, with a failing write each."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "failing.so"
    source = HERE / "failing_writes.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    def run(wanted: list[str]) -> list[dict[str, Any]]:
        program = ["-m", "tests.src.training.failing_run", json.dumps(tiny_overrides)]
        done = subprocess.run(
            [sys.executable, *program, str(tmp_path / "runs"), *wanted],
            env=os.environ | {"LD_PRELOAD": str(library)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line for line in done.stdout.splitlines() if line.startswith("CASE ")]
        return [json.loads(line.removeprefix("CASE ")) for line in lines]

    return run


def number_of(case: str) -> int:
    return int(case.partition(":")[0])


@pytest.mark.thorough
@pytest.mark.slow
def test_a_write_that_fails_leaves_what_was_saved_and_the_run_goes_on(
    cases: Callable[[list[str]], list[dict[str, Any]]],
) -> None:
    (whole,) = cases(["0:0:0"])
    kinds = [f"{code}:{lasting}" for code in (errno.ENOSPC, errno.EIO) for lasting in (0, 1)]
    step = max(1, whole["writes"] // 60)
    numbers = range(1, whole["writes"] + 1, step)
    wanted = [f"{number}:{kinds[turn % 4]}" for turn, number in enumerate(numbers)]
    told = dict(zip(wanted, cases(wanted), strict=True))
    for case, found in told.items():
        # Before the record is there nothing can be said; its last write is tried once more.
        ended = "failed" if number_of(case) > 8 else found["state"]
        assert found["state"] in ("finished", ended), case
        assert found["state"] != "running", case
        assert found["end"] == "finished", case
        assert found["losses"] == whole["losses"], case
        assert not found["left"], (case, "partial files go")
    states = [found["state"] for found in told.values()]
    print(whole["writes"], "writes;", {state: states.count(state) for state in set(states)})


class Usage(NamedTuple):
    """As shutil.disk_usage."""

    total: int
    used: int
    free: int


def test_a_full_disk_is_noticed_before_a_save(
    train_fake: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(SaveError, match=r"step-2 needs .* GB are free; .*go on with resume="):
        train_fake(f"run_dir={folder.path}")
    assert folder.record()["state"] == "failed"
    assert not list(folder.checkpoints.iterdir()), "nothing is left behind"


def test_the_end_of_a_run_is_recorded_in_the_space_that_was_reserved(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", config={}, record={"run_id": "a"})
    folder.reserve()
    assert (folder.path / ".reserve").stat().st_size > 10 * folder.record_file.stat().st_size
    folder.end("failed", "No space left on device")
    assert not (folder.path / ".reserve").exists()
    assert folder.record()["state"] == "failed"
