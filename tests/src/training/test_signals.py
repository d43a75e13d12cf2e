"""How runs end: by signals, by ranks that fail or stand still, by Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.run_folder import RunFolder
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training import launch, start
from src.training.launch import LaunchError
from src.training.signals import Stopped
from tests import fakes
from tests.conftest import ROOT, losses

Train = Callable[..., Path]
RunHere = Callable[..., subprocess.CompletedProcess[str]]
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
# Notes the first signal, and takes its time to save.
PROGRAM = """
import signal, sys, time
from src.training.signals import Stopped, deferred, stoppable
# What the tests were started with may ignore it, as nohup does.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
try:
    with stoppable(), deferred() as asked:
        print("ready", flush=True)
        while not asked():
            time.sleep(0.01)
        print("saving", flush=True)
        time.sleep(float(sys.argv[1]))
except Stopped as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.code)
"""


def program(saving: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(saving)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.integration
@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_saves_and_gives_its_code(number: signal.Signals) -> None:
    process = program(0.0)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert out == f"saving\ninterrupted by {number.name}\n"
    assert process.returncode == 128 + number


@pytest.mark.integration
@pytest.mark.parametrize("number", ENDING)
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    process = program(60.0)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert time.monotonic() - began < 5


@pytest.fixture
def run_of_two(compose_run: Callable[..., RunConfig], train_fake: Train) -> tuple[RunConfig, Path]:
    """A whole run, as if it went on in ranks that may be started twice more."""
    folder = train_fake()
    settings = compose_run("+experiment=quickstart", "launch.max_restarts=2")
    return settings, folder


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_ranks_that_fail_are_started_again_as_often_as_allowed(
    run_of_two: tuple[RunConfig, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failures: int,
) -> None:
    settings, path = run_of_two
    folder, left = RunFolder(path), iter(range(failures))

    def spawn(program: list[str], *, nproc: int, logs: Path) -> None:
        assert (program[-1], nproc) == (str(path), 1)
        if next(left, None) is not None:
            raise LaunchError("rank-0 was killed by signal 9")

    monkeypatch.setattr(launch, "spawn", spawn)
    if failures == 3:
        with pytest.raises(LaunchError, match="killed by signal 9"):
            start._run_here(settings, folder)
    else:
        start._run_here(settings, folder)
    err = capsys.readouterr().err
    assert err.count("rank-0 was killed by signal 9: restart") == min(failures, 2)
    assert err.count("from step 6") == min(failures, 2)
    assert folder.record().get("restarts", 0) == min(failures, 2)
    assert folder.record()["state"] == {0: "finished", 3: "failed"}.get(failures, "running")


def test_restarts_are_for_ranks_that_are_started_here(
    compose_run: Callable[..., RunConfig],
) -> None:
    with pytest.raises(ConfigError, match="max_restarts=1 is for launch=local"):
        compose_run("+experiment=quickstart", "launch=torchrun", "+launch.max_restarts=1")


@pytest.mark.integration
def test_a_rank_that_stands_still_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "STOPPED_POLLS", 10)
    code = "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), 19)"
    with pytest.raises(LaunchError, match=r"rank-1 has been stopped \(SIGSTOP\) for 1 s"):
        launch.spawn(["-c", f"{code}; time.sleep(60)"], nproc=2, logs=tmp_path)


def test_a_requeued_slurm_job_goes_on(
    compose_run: Callable[..., RunConfig],
    tiny_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGUSR1 says that the job's time is up; Slurm then runs the same command again."""
    monkeypatch.setattr("src.training.stage.build_engines", fakes.build_engines)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    settings = compose_run(*tiny_overrides, f"run_dir={tmp_path / 'run'}")
    log = RunFolder.log

    def log_and_warn(self: RunFolder, entry: dict) -> None:
        log(self, entry)
        if entry["step"] == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log_and_warn)
        with pytest.raises(Stopped, match="SIGUSR1"):
            start.train(settings, None)
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    start.train(settings, None)
    assert "from step 3" in capsys.readouterr().err
    assert RunFolder(tmp_path / "run").record()["state"] == "finished"
    assert len(losses(tmp_path / "run")) == 6
