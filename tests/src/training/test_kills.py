"""Runs that are killed at random moments go on to the same bits, saves and exports included.

Each run is a fork of this process, which has loaded torch and DeepSpeed already.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from src.run_folder import RunFolder
from src.settings.config import RunConfig
from src.training import start
from src.training.launch import World
from tests.conftest import losses
from tests.src.training.test_launch import free_port

KILLS = {1: 30, 2: 20}
# What a run has come to when it is killed, a moment later.
MOMENTS = ["config.yaml", "checkpoints", "export-ard.partial", "export.partial"]
MOMENTS += [f"checkpoints/step-{step}.partial" for step in range(1, 7)]
MOMENTS += [f"checkpoints/step-{step}" for step in range(1, 7)]


def fork(work: Callable[[], object], log: Path) -> int:
    """A child that does the work and exits with 0, or with 1 if it fails; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Ranks:
    """A run in forks: one process, or ranks as a launcher starts them."""

    def __init__(self, compose: Callable[[Path], RunConfig], size: int) -> None:
        self._compose = compose
        self._size = size

    def begin(self, folder: Path, log: Path) -> list[int]:
        """Start the run, or go on with it if it has begun; the ids of its processes."""
        port = str(free_port())

        def work(rank: int) -> None:
            world = None if self._size == 1 else World(rank, rank, self._size)
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            if (folder / "config.yaml").is_file():
                start.resume(folder, world)
            else:
                start.train(self._compose(folder), world)

        return [fork(lambda rank=rank: work(rank), log) for rank in range(self._size)]

    def end(self, pids: Sequence[int]) -> list[int]:
        """Wait for the processes; their exit codes."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    def kill(self, pids: Sequence[int], draw: random.Random) -> None:
        """Kill one process, and a moment later the others, as a launcher would."""
        for pid in draw.sample(list(pids), len(pids)):
            os.kill(pid, signal.SIGKILL)
            time.sleep(draw.choice((0.0, 0.2)))
        self.end(pids)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("size", KILLS)
def test_killed_runs_go_on_to_the_same_bits(
    compose_run: Callable[..., RunConfig], tiny_overrides: list[str], tmp_path: Path, size: int
) -> None:
    launch = ["launch=torchrun", f"launch.nproc={size}", "engine.student.zero_stage=2"]
    more = [] if size == 1 else launch

    def compose(folder: Path) -> RunConfig:
        often = ["checkpoint.every_steps=1", "checkpoint.keep=2"]
        return compose_run(*tiny_overrides, *more, *often, f"run_dir={folder}")

    ranks = Ranks(compose, size)
    log = tmp_path / "log"
    assert ranks.end(ranks.begin(tmp_path / "whole", log)) == [0] * size, log.read_text()[-3000:]
    whole = tmp_path / "whole"
    draw, stopped_in = random.Random(20), []
    for number in range(KILLS[size]):
        folder = tmp_path / f"run-{number}"
        pids = ranks.begin(folder, log)
        await_any(folder / draw.choice(MOMENTS), folder / "export")
        time.sleep(draw.choice((0.0, draw.uniform(0.0, 0.2))))
        stopped_in.append(_moment(folder))
        ranks.kill(pids, draw)
        assert ranks.end(ranks.begin(folder, log)) == [0] * size, log.read_text()[-3000:]
        assert RunFolder(folder).record()["state"] == "finished"
        assert losses(folder) == losses(whole), number
        one, other = (load_file(run / "export" / "model.safetensors") for run in (folder, whole))
        assert all(one[name].equal(other[name]) for name in other), number
        assert not list(folder.rglob("*.partial")), "partial files go"
    print(f"{size} ranks: killed {sorted(stopped_in)}")


def await_any(*paths: Path) -> None:
    """Wait until one of the paths is there."""
    deadline = time.monotonic() + 300
    while not any(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def _moment(folder: Path) -> str:
    """Where a run is."""
    if not folder.is_dir():
        return "before its folder"
    if list(folder.glob("*.partial")):
        return "export"
    if list(folder.glob("checkpoints/*.partial")):
        return "save"
    state = RunFolder(folder).record()["state"] if (folder / "run.json").is_file() else "begun"
    steps = len(losses(folder)) if (folder / "metrics.jsonl").is_file() else 0
    return f"{state} after step {steps}"
