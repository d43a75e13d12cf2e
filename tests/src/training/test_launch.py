"""Ranks: found in the environment, started here, stopped together."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.run_folder import RunFolder
from src.training import launch
from src.training.launch import World, world_from_environment
from tests.conftest import kill_when, losses, spawning, started
from tests.forked import Command

StartForked = Callable[..., Command]
RunForked = Callable[..., subprocess.CompletedProcess[str]]

# A rank's program: CODE sees `world`, and `reduce`, a sum over ranks.
RANK = """
import sys, time
from pathlib import Path
from src.training import launch
def work(world):
    import torch
    from torch import distributed
    with launch.joined(world, cuda=False):
        def reduce(x):
            t = torch.tensor(float(x)); distributed.all_reduce(t); return t.item()
        {code}
        launch.leave(world)
launch.run_rank(work, Path({logs!r}))
"""


def statements(*lines: str) -> str:
    return "".join(f"\n        {line}" for line in lines)


def rank_program(logs: Path, code: str) -> list[str]:
    return ["-c", RANK.format(code=code, logs=str(logs))]


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


def test_ranks_talk_and_only_rank_0_reports(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = rank_program(tmp_path, "print('sum', reduce(world.rank + 1), flush=True)")
    launch.spawn(program, nproc=3, logs=tmp_path)
    assert capfd.readouterr().out.count("sum 6.0") == 1
    assert "sum 6.0" in (tmp_path / "rank-2.log").read_text()


@pytest.fixture
def start_ranks(start_forked: StartForked, tmp_path: Path) -> Callable[[str], Command]:
    """start_ranks(CODE) -> a process that spawns two ranks with that program."""

    return lambda code: start_forked(*spawning(rank_program(tmp_path, code), tmp_path))


def test_a_failing_rank_fails_all_with_its_own_traceback(
    start_ranks: Callable[[str], Command],
) -> None:
    code = statements(
        "if world.rank == 1: raise KeyError('the cause')", "reduce(1)", "time.sleep(60)"
    )
    said = start_ranks(code).finished(45).stderr
    assert re.search(r"(?s)LaunchError: rank-1 failed:.*Traceback.*KeyError: 'the cause'", said)


def test_a_killed_rank_is_named(start_ranks: Callable[[str], Command]) -> None:
    code = statements("import os", "if world.rank == 1: os.kill(os.getpid(), 9)", "time.sleep(60)")
    assert "LaunchError: rank-1 was killed by signal 9" in start_ranks(code).finished(45).stderr


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ranks_die_with_their_parent(
    start_ranks: Callable[[str], Command], tmp_path: Path, number: int
) -> None:
    code = statements(
        "import os",
        f"Path({str(tmp_path)!r}, f'pid-{{world.rank}}').write_text(str(os.getpid()))",
        "time.sleep(120)",
    )
    parent = start_ranks(code)
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
CHECKPOINTED = "engine.student.gradient_checkpointing=true"
ZERO_3 = ("engine.student.zero_stage=3", "engine.teacher.zero_stage=3")
ON_RANKS = {
    "sharded": ("launch.nproc=2", *ZERO_3, CHECKPOINTED),
    "shared": (
        *("launch.nproc=2", "engine.student.zero_stage=3", "engine.teacher.share_base=true"),
        CHECKPOINTED,
    ),
    "three": ("launch.nproc=3", "engine.student.zero_stage=1"),
}


@pytest.fixture(scope="module")
def one(train_tiny: Callable[..., Path]) -> Path:
    """The run folder of one process, this one."""
    return train_tiny(DEEP)


@pytest.fixture(scope="module")
def trained_on(
    tiny_overrides: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    run_forked: RunForked,
) -> Callable[[str], Path]:
    """trained_on("sharded") -> the run folder of those ranks, which are started once."""

    @functools.cache
    def trained(ranks: str) -> Path:
        folder = tmp_path_factory.mktemp(ranks) / "run"
        overrides = [*tiny_overrides, DEEP, f"run_dir={folder}"]
        done = run_forked("src.train", *overrides, *ON_RANKS[ranks])
        assert done.returncode == 0, done.stderr
        return folder

    return trained


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks",
    ["sharded", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("shared", "three"))],
)
def test_ranks_have_the_losses_of_one(
    one: Path, trained_on: Callable[[str], Path], ranks: str
) -> None:
    other = trained_on(ranks)
    assert losses(other) == pytest.approx(losses(one), rel=1e-5, abs=1e-8)
    assert losses(other, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-4)
    assert (other / "logs" / "rank-1.log").is_file()
    assert list(other.parent.iterdir()) == [other], "one folder a run"


@pytest.mark.thorough  # two nodes below have torchrun's ranks too
@pytest.mark.slow
def test_torchrun_ranks_are_used_as_they_are(
    tiny_overrides: list[str], tmp_path: Path, run_forked: RunForked
) -> None:
    done = run_forked(
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "src.train",
        *tiny_overrides,
        f"run_dir={tmp_path / 'run'}",
        "engine.student.zero_stage=2",
        "--local_rank=0",
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_two_nodes_of_ranks_have_the_losses_of_one_process(
    tiny_overrides: list[str],
    tmp_path: Path,
    one: Path,
    start_forked: StartForked,
    nproc: int,
) -> None:
    """Each node has a torchrun of its own; they meet on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [
        start_forked(
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--nproc-per-node={nproc}",
            f"--node-rank={node}",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
            "-m",
            "src.train",
            *tiny_overrides,
            DEEP,
            "launch=torchrun",
            "launch.nodes=2",
            f"launch.nproc={nproc}",
            *ZERO_3,
            f"run_dir={tmp_path / 'run'}",
            "--local_rank=0",
            env={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for node in range(2)
    ]
    for node in nodes:
        done = node.finished(300)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=1e-5, abs=1e-8)
    assert (tmp_path / "run" / "export" / "config.json").is_file()


@pytest.mark.slow
def test_the_deepspeed_launchers_ranks_are_used_as_they_are(
    tiny_overrides: list[str], tmp_path: Path, run_forked: RunForked
) -> None:
    """It adds --local_rank to each rank's arguments, which Hydra would refuse."""
    done = run_forked(
        "deepspeed.launcher.runner",
        "--num_gpus=2",
        "--module",
        "src.train",
        *tiny_overrides,
        f"run_dir={tmp_path / 'run'}",
        env={
            "DS_ACCELERATOR": "cpu",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 6


@pytest.mark.slow
def test_slurm_tasks_are_used_as_they_are(
    tiny_overrides: list[str], tmp_path: Path, start_forked: StartForked
) -> None:
    """Two tasks with the variables that srun sets; the job script names rank 0's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tasks = [
        start_forked(
            *("-m", "src.train", *tiny_overrides, f"run_dir={tmp_path / 'run'}"),
            env={
                "SLURM_JOB_ID": "1",
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "SLURM_NTASKS": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]
    for task in tasks:
        done = task.finished(200)
        assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "forked", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["forked", "anew"]
)
def test_stopped_ranks_leave_a_record_and_resume(
    trained_on: Callable[[str], Path],
    tiny_overrides: list[str],
    tmp_path: Path,
    run_forked: RunForked,
    start_forked: StartForked,
    forked: bool,
) -> None:
    folder = tmp_path / "run"
    overrides = [*tiny_overrides, DEEP, *ON_RANKS["sharded"], f"run_dir={folder}"]
    program = ("-m", "src.train", *overrides)
    process = start_forked(*program) if forked else started(*program)
    kill_when(process, lambda: (folder / "checkpoints" / "step-2").is_dir(), signal.SIGTERM)
    assert process.returncode == 130
    assert RunFolder(folder).record()["state"] == "interrupted"
    resumed = run_forked("src.train", f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    assert "from step" in resumed.stderr
    assert losses(folder) == losses(trained_on("sharded"))


@pytest.mark.slow
@pytest.mark.thorough
def test_a_fault_on_ranks_is_recorded_and_shown(
    tiny_overrides: list[str], tmp_path: Path, run_forked: RunForked
) -> None:
    """A learning rate that makes the loss overflow fails the run on both ranks.

    By default `test_a_failing_rank_fails_all_with_its_own_traceback` and the next test show it.
    """
    folder = tmp_path / "run"
    failed = run_forked(
        "src.train",
        *tiny_overrides,
        "recipe.stages.ard.lr=1e30",
        "launch.nproc=2",
        f"run_dir={folder}",
    )
    assert failed.returncode == 1
    assert "FloatingPointError: stage ard, step 2" in failed.stderr
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "failed"
    assert "FloatingPointError" in record["error"]


def test_a_fault_in_a_run_is_recorded(train_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="stage ard, step 2"):
        train_tiny("recipe.stages.ard.lr=1e30", f"run_dir={folder}")
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "failed"
    assert "FloatingPointError" in record["error"]
