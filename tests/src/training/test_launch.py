"""Ranks: found in the environment, started here, stopped together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.run_folder import RunFolder
from src.settings.config import RunConfig
from src.training import launch, start
from src.training.launch import LaunchError, World, world_from_environment
from src.training.signals import Stopped, stoppable
from tests.conftest import ended, losses
from tests.ranks import on_ranks
from tests.src.training import rank_sum

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]

# The program of a rank: CODE sees `world`.
RANK = """
import os, time
from pathlib import Path
from src.training import launch
def work(world):
    {code}
launch.run_rank(work, Path({logs!r}))
"""
# A sum over ranks.
TALK = (
    "import torch",
    "from torch import distributed",
    "with launch.joined(world, cuda=False):",
    "    total = torch.tensor(world.rank + 1)",
    "    distributed.all_reduce(total)",
    "    print('sum', total.item(), flush=True)",
    "    launch.leave(world)",
)


def rank_program(logs: Path, *lines: str) -> list[str]:
    return ["-c", RANK.format(code="\n    ".join(lines), logs=str(logs))]


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        pytest.param({}, None, id="none"),
        pytest.param(
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, World(3, 1, 4), id="torchrun"
        ),
        pytest.param(
            {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"},
            World(2, 0, 4),
            id="slurm",
        ),
        pytest.param({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None, id="slurm-one-task"),
        pytest.param(
            {
                "RANK": "1",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "1",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "9",
            },
            World(1, 1, 2),
            id="torchrun-inside-slurm",
        ),
    ],
)
def test_world_from_environment(environment: dict[str, str], world: World | None) -> None:
    assert world_from_environment(environment) == world


def test_slurm_address_is_the_first_host_of_the_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\n[ "$3" = "node[07-08]" ] && printf "node07\\nnode08\\n"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[07-08]")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    launch._slurm_address()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node07", "20123")


@pytest.mark.integration
def test_ranks_talk_and_only_rank_0_reports(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launch.spawn(rank_program(tmp_path, *TALK), nproc=2, logs=tmp_path)
    assert capfd.readouterr().out.count("sum 3") == 1
    assert "sum 3" in (tmp_path / "rank-1.log").read_text()


@pytest.mark.integration
def test_a_failing_rank_fails_all_with_its_own_traceback(tmp_path: Path) -> None:
    program = rank_program(
        tmp_path, "if world.rank == 1: raise KeyError('the cause')", "time.sleep(60)"
    )
    with pytest.raises(LaunchError, match=r"(?s)^rank-1 failed:.*Traceback.*KeyError: 'the cause'"):
        launch.spawn(program, nproc=2, logs=tmp_path)


@pytest.mark.integration
def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    program = rank_program(
        tmp_path, "if world.rank == 1: os.kill(os.getpid(), 9)", "time.sleep(60)"
    )
    with pytest.raises(LaunchError, match=r"^rank-1 was killed by signal 9"):
        launch.spawn(program, nproc=2, logs=tmp_path)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        pytest.param([1, None], "rank-0 failed:\nlost rank 1", id="its-traceback"),
        pytest.param([1, -9], "rank-1 was killed by signal 9", id="killed-before-traceback"),
        pytest.param([None, 3], "rank-1 ended with exit code 3", id="no-traceback"),
    ],
)
def test_the_cause_is_told_from_its_consequences(
    tmp_path: Path, codes: list[int | None], expected: str
) -> None:
    (tmp_path / "rank-0.traceback").write_text("lost rank 1\n")
    failed = [rank for rank, code in enumerate(codes) if code]
    assert launch._failure(failed, codes, tmp_path).startswith(expected)


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ranks_die_with_their_parent(start_command: Start, tmp_path: Path, number: int) -> None:
    program = rank_program(
        tmp_path,
        f"Path({str(tmp_path)!r}, f'pid-{{world.rank}}').write_text(str(os.getpid()))",
        "time.sleep(120)",
    )
    spawn = f"launch.spawn({program!r}, nproc=2, logs=Path({str(tmp_path)!r}))"
    parent = start_command(
        "-c", f"from pathlib import Path; from src.training import launch; {spawn}"
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 2:
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    pids = [int(p.read_text()) for p in tmp_path.glob("pid-*")]
    parent.send_signal(number)
    parent.wait(30)
    deadline = time.monotonic() + 15
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived its parent"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# Some layers in the middle, which ZeRO-3 fetches as a whole.
DEEP = "model.shape.layers=4"
ZERO_3 = ("engine.student.zero_stage=3", "engine.teacher.zero_stage=3")
CHECKPOINTED = "engine.student.gradient_checkpointing=true"


@pytest.fixture(scope="module")
def one(train_tiny: Callable[..., Path]) -> Path:
    """The run folder of one process, this one."""
    return train_tiny(DEEP)


def rank_of_run(world: World, settings: RunConfig, stopped_at: int | None) -> None:
    """A rank as a launcher starts it. All get SIGTERM after a step, as from a scheduler.

    It leaves its exit code beside the run folder. A run that has begun goes on.
    """
    log = RunFolder.log

    def log_and_stop(self: RunFolder, entry: dict) -> None:
        log(self, entry)
        if entry["step"] == stopped_at:
            for note in folder.path.parent.glob("pid-*"):
                os.kill(int(note.read_text()), signal.SIGTERM)

    folder = RunFolder(Path(settings.run_dir or ""))
    (folder.path.parent / f"pid-{world.rank}").write_text(str(os.getpid()))
    code = 0
    with pytest.MonkeyPatch.context() as patch, launch.joined(world, cuda=False):
        patch.setattr(RunFolder, "log", log_and_stop)
        try:
            with stoppable():
                if (folder.path / "config.yaml").is_file():
                    start.resume(folder.path, world)
                else:
                    start.train(settings, world)
        except Stopped as stopped:
            code = stopped.code
    (folder.path.parent / f"code-{world.rank}").write_text(str(code))


@pytest.mark.integration
def test_stopped_ranks_go_on_and_have_the_losses_of_one(
    one: Path, tiny_overrides: list[str], tmp_path: Path, compose_run: Callable[..., RunConfig]
) -> None:
    """Two ranks, as a launcher starts them."""
    folder = RunFolder(tmp_path / "run")
    ranks = ["launch=torchrun", "launch.nproc=2", *ZERO_3, CHECKPOINTED, "checkpoint.every_steps=3"]
    settings = compose_run(*tiny_overrides, DEEP, *ranks, f"run_dir={folder.path}")
    # A step beyond the checkpoint.
    on_ranks(2, rank_of_run, settings, 4)
    assert [(tmp_path / f"code-{rank}").read_text() for rank in range(2)] == ["143"] * 2
    assert folder.record()["state"] == "interrupted"
    before = list(losses(folder.path))
    on_ranks(2, rank_of_run, settings, None)
    assert losses(folder.path)[: len(before)] == before, "the same bits"
    assert losses(folder.path) == pytest.approx(losses(one), rel=1e-5, abs=1e-8)
    norms = [losses(run, "grad_norm") for run in (folder.path, one)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert (folder.path / "export" / "config.json").is_file()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder.path]


def nodes_of_torchrun(
    start_command: Start, nproc: int, *program: str
) -> list[subprocess.Popen[str]]:
    """A torchrun on each of two nodes, with so many ranks of `python -m PROGRAM`."""
    port = free_port()
    return [
        start_command(
            *("-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={nproc}"),
            *(f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"),
            *("-m", *program),
            env={"GLOO_SOCKET_IFNAME": "lo"},
        )
        for node in range(2)
    ]


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(
            ("launch.nproc=2", "engine.student.zero_stage=3", "engine.teacher.share_base=true"),
            id="shared",
        ),
        pytest.param(("launch.nproc=3", "engine.student.zero_stage=1"), id="three"),
    ],
)
def test_ranks_have_the_losses_of_one(
    one: Path, train_tiny: Callable[..., Path], ranks: tuple[str, ...]
) -> None:
    other = train_tiny(DEEP, CHECKPOINTED, *ranks)
    assert losses(other) == pytest.approx(losses(one), rel=1e-5, abs=1e-8)
    assert losses(other, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_rank_that_a_launcher_starts_makes_a_run(
    tiny_overrides: list[str], compose_run: Callable[..., RunConfig], tmp_path: Path, one: Path
) -> None:
    """It is the only one here; `test_stopped_ranks_go_on_and_...` has two."""
    by_torchrun = ["launch=torchrun", f"run_dir={tmp_path / 'run'}"]
    path = start.train(compose_run(*tiny_overrides, DEEP, *by_torchrun), World())
    assert RunFolder(path).record()["state"] == "finished"
    assert losses(path) == losses(one)


# What two ranks of a launcher do: join each other, or a whole run.
BY_DEFAULT, THOROUGH = "sum", pytest.param("run", marks=pytest.mark.thorough)


def work_of_ranks(work: str, tiny_overrides: list[str], folder: Path) -> list[str]:
    if work == "sum":
        return ["tests.src.training.rank_sum", str(folder / "seen.json")]
    return ["src.train", *tiny_overrides, f"run_dir={folder / 'run'}"]


def check_work(work: str, folder: Path) -> None:
    if work == "run":
        assert len(losses(folder / "run")) == 6
        return
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["world"] == {"rank": 0, "local_rank": 0, "size": 2}
    assert seen["sum"] == 3


@pytest.mark.integration
@pytest.mark.parametrize("work", [BY_DEFAULT, THOROUGH])
def test_torchruns_ranks_are_used_as_they_are(
    tiny_overrides: list[str], tmp_path: Path, start_command: Start, work: str
) -> None:
    """Two nodes on the loopback interface, each with a torchrun and one rank of its own."""
    for node in nodes_of_torchrun(start_command, 1, *work_of_ranks(work, tiny_overrides, tmp_path)):
        done = ended(node)
        assert done.returncode == 0, done.stderr
    check_work(work, tmp_path)


@pytest.mark.slow
@pytest.mark.thorough
def test_two_nodes_of_two_ranks_have_the_losses_of_one_process(
    tiny_overrides: list[str], tmp_path: Path, one: Path, start_command: Start
) -> None:
    by_torchrun = ["launch=torchrun", "launch.nodes=2", "launch.nproc=2", *ZERO_3]
    run = [*tiny_overrides, DEEP, *by_torchrun, f"run_dir={tmp_path / 'run'}"]
    for node in nodes_of_torchrun(start_command, 2, "src.train", *run):
        done = ended(node)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=1e-5, abs=1e-8)
    assert (tmp_path / "run" / "export" / "config.json").is_file()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("work", [BY_DEFAULT, THOROUGH])
def test_the_deepspeed_launchers_ranks_are_used_as_they_are(
    tiny_overrides: list[str], tmp_path: Path, start_command: Start, work: str
) -> None:
    program = work_of_ranks(work, tiny_overrides, tmp_path)
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus=2", "--module"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = ended(start_command(*launcher, *program, env={"DS_ACCELERATOR": "cpu", "PATH": path}))
    assert done.returncode == 0, done.stderr
    check_work(work, tmp_path)
    if work == "sum":
        # `test_an_option_that_the_deepspeed_launcher_adds_is_no_override` has it accepted.
        assert json.loads((tmp_path / "seen.json").read_text())["added"] == ["--local_rank=0"]


def test_an_option_that_the_deepspeed_launcher_adds_is_no_override(run_here: Run) -> None:
    done = run_here("src.train", "model=tiny", "--local_rank=0", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "optimizer steps" in done.stdout


def slurm_task(rank: int) -> dict[str, str]:
    """The variables that srun sets for one of two tasks."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def sum_of_tasks(world: World, port: int, seen: Path) -> None:
    """A task that adds up with the other one; the job script names rank 0's address."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        del os.environ[name]
    os.environ.update(slurm_task(world.rank), MASTER_PORT=str(port))
    rank_sum.main([str(seen)])


@pytest.mark.integration
def test_slurm_tasks_are_used_as_they_are(tmp_path: Path) -> None:
    on_ranks(2, sum_of_tasks, free_port(), tmp_path / "seen.json")
    check_work("sum", tmp_path)


@pytest.mark.integration
@pytest.mark.thorough
def test_slurm_tasks_make_a_run(
    tiny_overrides: list[str], tmp_path: Path, start_command: Start
) -> None:
    program = work_of_ranks("run", tiny_overrides, tmp_path)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [start_command("-m", *program, env=shared | slurm_task(rank)) for rank in range(2)]
    for task in tasks:
        done = ended(task)
        assert done.returncode == 0, done.stderr
    check_work("run", tmp_path)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_fault_on_ranks_is_recorded_and_shown(
    tiny_overrides: list[str], tmp_path: Path, run_here: Run
) -> None:
    """A learning rate that makes the loss overflow fails the run on both ranks.

    By default `test_a_failing_rank_fails_all_with_its_own_traceback` and the next test show it.
    """
    folder = tmp_path / "run"
    fault = ["recipe.stages.ard.lr=1e30", "launch.nproc=2"]
    failed = run_here("src.train", *tiny_overrides, *fault, f"run_dir={folder}")
    assert failed.returncode == 1
    assert "FloatingPointError: stage ard, step 4" in failed.stderr
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "failed"
    assert "FloatingPointError" in record["error"]


def test_a_fault_in_a_run_is_recorded(train_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="stage ard, step 4: 3 steps in a row"):
        train_tiny("recipe.stages.ard.lr=1e30", f"run_dir={folder}")
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "failed"
    assert "FloatingPointError" in record["error"]
