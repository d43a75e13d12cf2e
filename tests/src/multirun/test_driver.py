"""Whole sweeps of tiny jobs: what fails, what is resumed, what a kill leaves behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.multirun import cluster, composition, driver, process
from src.report.runs import read_runs
from src.settings.config import RunConfig
from src.training import preparing
from tests.conftest import ended, kill_when
from tests.fakes import JobsHere
from tests.src.multirun.node_job import NodeJob

Start = Callable[..., subprocess.Popen[str]]
RunHere = Callable[..., subprocess.CompletedProcess[str]]

# Two at a time on two cores of their own.
PARALLEL = ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2"]


@pytest.fixture(scope="module")
def tiny_job(tiny_overrides: list[str]) -> list[str]:
    """One step of the first stage, tracked offline."""
    left_out = ("recipe.stages.cpt.", "tracking=", "recipe.stages.ard.tokens=")
    kept = [o for o in tiny_overrides if not o.startswith(left_out)]
    return [
        *kept,
        "recipe=ard_short",
        "recipe.stages.ard.tokens=256",
        "tracking=wandb_offline",
    ]


def offline_runs(run_dir: Path) -> list[dict[str, Any]]:
    """State, config and summary of a folder's W&B runs, read from their own files."""
    read = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary"]
    return [
        json.loads(subprocess.run([*read, str(file)], check=True, capture_output=True).stdout)
        for file in run_dir.glob("wandb/offline-run-*/run-*.wandb")
    ]


@pytest.fixture(scope="module")
def texts(prose: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three folders of text, the second of which is not there yet."""
    parent = tmp_path_factory.mktemp("texts")
    folders = [parent / str(n) for n in range(3)]
    for folder in folders[:1] + folders[2:]:
        shutil.copytree(prose, folder)
    return folders


@pytest.fixture
def jobs_here(monkeypatch: pytest.MonkeyPatch, compose_run: Callable[..., RunConfig]) -> None:
    """Jobs of a sweep run in this process, each where it would be started."""
    monkeypatch.setattr(process, "start", JobsHere(compose_run))


@pytest.fixture(scope="module")
def three_jobs(
    tiny_job: list[str],
    texts: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
    compose_run: Callable[..., RunConfig],
) -> tuple[Path, list[str], subprocess.CompletedProcess[str]]:
    """A sweep's folder, its command and what came of it."""
    folder = tmp_path_factory.mktemp("three") / "sweep"
    paths = ",".join(f"[{path}]" for path in texts)
    command = [*tiny_job, f"data.sources.files.paths={paths}", f"run_dir={folder}", *PARALLEL]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(process, "start", JobsHere(compose_run))
        code = driver.run(command, preparing.prepare)
    return folder, command, subprocess.CompletedProcess(command, code, "", said.getvalue())


ThreeJobs = tuple[Path, list[str], subprocess.CompletedProcess[str]]


def test_one_job_of_three_fails_and_is_named(three_jobs: ThreeJobs, texts: list[Path]) -> None:
    folder, _, done = three_jobs
    assert done.returncode == 1, done.stderr
    assert "2 jobs finished, 1 failed" in done.stderr
    (named,) = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert "job 2 (" in named
    assert f"{texts[1]}' does not exist" in named
    runs = read_runs(folder)
    assert [run.state for run in runs] == ["finished"] * 2
    assert not [run.problems for run in runs if run.problems]
    tracked = [one for run in runs for one in offline_runs(run.folder)]
    assert [one["state"] for one in tracked] == ["finished"] * 2
    for run, one in zip(runs, tracked, strict=True):
        record = json.loads((run.folder / "run.json").read_text())
        assert one["config"]["sweep/hash"] == record["sweep"]["hash"]
        assert one["config"]["recipe/stages/ard/lr"] == 1e-3
        assert one["summary"]["total/tokens"] == record["tokens"] == 256
        assert one["summary"]["train/loss"] == run.metrics.series["loss/total"][-1]
        assert one["summary"]["plots/relation_by_layer"]["_type"] == "plotly-file"
    assert f"wandb sync {folder}/*/wandb/offline-run-*" in done.stderr


def test_each_run_knows_its_job(three_jobs: ThreeJobs) -> None:
    folder = three_jobs[0]
    known = {job["hash"]: job for job in json.loads((folder / "sweep.json").read_text())["jobs"]}
    records = [json.loads(p.read_text()) for p in folder.glob("*/run.json")]
    assert len({record["run_id"] for record in records}) == 2
    for record in records:
        job = record["sweep"]
        assert job["name"] == "multirun"
        assert known[job["hash"]]["number"] == job["job"]
        assert record["run_id"] == f"{job['id']}-{job['hash'][:8]}"


@pytest.mark.usefixtures("jobs_here")
def test_resuming_runs_only_what_failed(
    three_jobs: ThreeJobs, texts: list[Path], prose: Path, run_here: RunHere
) -> None:
    folder, command, _ = three_jobs
    before = {p: p.read_bytes() for p in folder.glob("*/*.json*")}
    shutil.copytree(prose, texts[1])
    done = run_here("src.train", "-m", *command, "sweep_resume=true")
    assert done.returncode == 0, done.stderr
    started = [line for line in done.stderr.splitlines() if line.startswith("started ")]
    assert [line.partition(" (")[0] for line in started] == ["started job 2"]
    assert {p: p.read_bytes() for p in before} == before
    assert [run.state for run in read_runs(folder)] == ["finished"] * 3


def children_of(pid: int) -> list[int]:
    """Processes below one, at any depth."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = {int(a): int(b) for a, b in (line.split() for line in found.stdout.splitlines())}
    below = [child for child, parent in parents.items() if parent == pid]
    return below + [grandchild for child in below for grandchild in children_of(child)]


@pytest.fixture
def killed(
    tiny_job: list[str], tmp_path: Path, start_command: Start
) -> tuple[Path, list[str], list[int]]:
    """A sweep killed when it has started two jobs; its folder, its command, its processes."""
    folder = tmp_path / "sweep"
    longer = ["recipe.stages.ard.tokens=2048", "tracking=none"]
    command = [*tiny_job, "seed=1,2", f"run_dir={folder}", *PARALLEL, *longer]
    sweep = start_command("-m", "src.train", "-m", *command)
    below: list[int] = []

    def started() -> bool:
        below[:] = children_of(sweep.pid)
        return len(list(folder.glob("logs/*"))) == 2

    kill_when(sweep, started, signal.SIGKILL)
    return folder, command, below


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.usefixtures("jobs_here")
def test_killing_the_parent_leaves_nothing_running_and_the_sweep_can_be_completed(
    killed: tuple[Path, list[str], list[int]], run_here: RunHere
) -> None:
    folder, command, below = killed
    deadline = time.monotonic() + 10
    while left := [pid for pid in below if Path(f"/proc/{pid}").exists() and not zombie(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)
    states = [run.record.state for run in read_runs(folder) if run.record]
    assert "finished" not in states, "it was killed in time"
    done = run_here("src.train", "-m", *command, "sweep_resume=true")
    assert done.returncode == 0, done.stderr
    runs = read_runs(folder)
    assert [run.state for run in runs] == ["finished"] * 2
    assert {run.record.seed for run in runs if run.record} == {1, 2}
    assert all(run.metrics.steps == tuple(range(1, 9)) for run in runs), "each step once"
    again = run_here("src.train", "-m", *command, "sweep_resume=true")
    assert again.returncode == 0
    assert "started" not in again.stderr
    assert "so far: 2 finished" in again.stderr


def zombie(pid: int) -> bool:
    """Ended, and nobody has asked how: in a container nobody may ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.integration
@pytest.mark.slow
def test_a_sweep_that_is_stopped_stops_its_jobs(
    tiny_job: list[str], tmp_path: Path, start_command: Start
) -> None:
    long = ["recipe.stages.ard.tokens=65536", "tracking=none"]
    sweep = start_command(
        "-m", "src.train", "-m", *tiny_job, "seed=1,2", f"run_dir={tmp_path / 's'}", *long
    )
    kill_when(sweep, lambda: bool(list(tmp_path.glob("s/*/metrics.jsonl"))), signal.SIGTERM)
    done = ended(sweep)
    assert done.returncode == 143, done.stderr
    assert "stopped; go on with" in done.stderr
    assert "sweep_resume=true" in done.stderr
    (record,) = tmp_path.glob("s/*/run.json")
    assert json.loads(record.read_text())["state"] == "interrupted"


def test_a_dry_run_prints_all_jobs_and_the_total(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["+experiment=linearard_32k", "model=llama2_7b", "+sweeps=learning_rate"]
    more = ["recipe.stages.ard.lr=1e-4,1e-3", "dry_run=true", "plan_for=h200", "launch.nproc=2"]
    assert driver.run([*arguments, *more], preparing.prepare) == 0
    said = capsys.readouterr().out
    assert "0.0001" in said
    assert "2 jobs: 8,912,896 tokens" in said
    assert "device-hours" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    swept = ["model=tiny", "recipe.stages.ard.lr=1e-3,-1,0.5", "dry_run=true"]
    code = driver.run(swept, preparing.prepare)
    said = capsys.readouterr().out
    assert code == 1
    assert "job 2 (recipe.stages.ard.lr=-1) is refused" in said
    assert "2 jobs: 8,912,896 tokens" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["model=tiny", "sede=1,2"], "unknown key 'sede'; did you mean 'seed'", id="key"
        ),
        pytest.param(["+sweeps=nonsense"], "no such sweep", id="sweep"),
        pytest.param(["model=tiny", "seed=-1,-2"], "every job of the sweep is refused", id="all"),
        pytest.param(["model=tiny", "seed=1,2", "--config-name=x"], "overrides", id="option"),
        pytest.param(
            ["model=tiny", "seed=1", *PARALLEL[:1], "hydra.launcher.n_jobs=many"],
            "give a number, or null",
            id="n_jobs",
        ),
        pytest.param(
            ["model=tiny", "seed=1,2", "launch=torchrun"], "launch.nproc, or launch=slurm", id="by"
        ),
        pytest.param(
            [
                "model=smollm2_135m",
                "seed=1,2",
                "engine=cpu",
                *PARALLEL[:1],
                "hydra.launcher.n_jobs=100",
                "+experiment=quickstart",
            ],
            "100 jobs at once need an estimated",
            id="memory",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_message(
    run_here: Callable[..., Any], arguments: list[str], message: str
) -> None:
    done = run_here("src.train", "-m", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_without_m_is_refused(run_here: Callable[..., Any]) -> None:
    done = run_here("src.train", "model=tiny", "+sweeps=seeds", "dry_run=true")
    assert done.returncode == 2
    assert "+sweeps=seeds is many runs: add -m" in done.stderr


def test_a_sweep_under_a_launcher_is_refused(
    run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    done = run_here("src.train", "-m", "model=tiny", "seed=1,2")
    assert done.returncode == 2
    assert "type it without the launcher" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["seed=1"], None),
        (["-m", "seed=1,2"], ["seed=1,2"]),
        (["seed=1,2", "--multirun"], ["seed=1,2"]),
        (["-m", "--help"], None),
        (["-m", "--cfg=job"], None),
    ],
)
def test_which_commands_are_sweeps(argv: list[str], found: list[str] | None) -> None:
    assert composition.wanted(argv) == found


@pytest.mark.integration
def test_jobs_through_submitit(
    tiny_job: list[str],
    prose: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The local executor stands for Slurm: the same callable, without a scheduler."""
    folder = tmp_path / "sweep"
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    texts = f"data.sources.files.paths=[{prose}],[{tmp_path / 'none'}]"
    command = [*tiny_job, texts, f"run_dir={folder}", "tracking=none", *launcher]
    monkeypatch.setattr(cluster, "ClusterJob", NodeJob)
    done = run_here("src.train", "-m", *command)
    assert done.returncode == 1, done.stderr
    assert "1 job finished, 1 failed" in done.stderr
    (named,) = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert "job 2 (" in named
    assert "none' does not exist" in named
    assert [run.state for run in read_runs(folder)] == ["finished"]
    assert os.listdir(folder / "submitit")
