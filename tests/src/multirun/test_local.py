"""How a machine is divided, and jobs that run on the parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from src.multirun import local, process
from src.multirun.folder import Task
from src.multirun.process import Share, arguments
from src.planning import devices
from src.planning.devices import ACCELERATORS
from src.settings.config import RunConfig, SweepJob
from src.settings.strict import ConfigError

Compose = Callable[..., RunConfig]


@pytest.fixture
def on_cpu(compose_run: Compose) -> list[RunConfig]:
    return [compose_run("model=tiny", "engine=cpu")] * 6


@pytest.fixture
def on_gpu(compose_run: Compose, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Jobs of two ranks each on a machine with eight GPUs."""
    monkeypatch.setattr("src.multirun.local.uses_cuda", lambda name: name != "cpu")
    monkeypatch.setattr("src.multirun.local.gpus", lambda: [None] * 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return [compose_run("model=tiny", "launch.nproc=2")] * 6


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("eight_cores")
def test_cores_are_divided(on_cpu: list[RunConfig]) -> None:
    parts = local.shares(on_cpu, 3)
    assert [sorted(part.cores or ()) for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert {part.environment["OMP_NUM_THREADS"] for part in parts} == {"2"}
    assert len(local.shares(on_cpu, None)) == 4, "one for every two cores"
    assert len(local.shares(on_cpu[:2], None)) == 2, "not more than jobs"


@pytest.mark.usefixtures("eight_cores")
def test_more_jobs_than_cores_share_them(on_cpu: list[RunConfig]) -> None:
    parts = local.shares(on_cpu, 10)
    assert len(parts) == 10
    assert all(part.cores is None for part in parts)


@pytest.mark.usefixtures("eight_cores")
def test_gpus_are_divided_by_what_a_job_takes(on_gpu: list[RunConfig]) -> None:
    parts = local.shares(on_gpu, None)
    seen = [part.environment["CUDA_VISIBLE_DEVICES"] for part in parts]
    assert seen == ["0,1", "2,3", "4,5", "6,7"]


def test_gpus_that_this_process_may_not_see_are_left_alone(
    on_gpu: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,GPU-abc")
    (part,) = local.shares(on_gpu, None)
    assert part.environment["CUDA_VISIBLE_DEVICES"] == "5,3"


def test_more_jobs_than_gpus_are_refused(on_gpu: list[RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"5 jobs at once with launch\.nproc=2 need 10 GPUs"):
        local.shares(on_gpu, 5)


@pytest.fixture
def small_on_gpu(compose_run: Compose, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Eight runs of a small model, and two H200s."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for module in (devices, local):
        monkeypatch.setattr(module, "uses_cuda", lambda name: True)
        monkeypatch.setattr(module, "gpus", lambda: (ACCELERATORS["h200"],) * 2)
    run = compose_run("+experiment=linearard_32k", "model=smollm2_135m")
    return [run] * 8


def test_small_runs_share_gpus_and_their_memory(small_on_gpu: list[RunConfig]) -> None:
    parts = local.shares(small_on_gpu, None, 2)
    assert [part.environment["CUDA_VISIBLE_DEVICES"] for part in parts] == ["0", "1", "0", "1"]
    assert {part.environment[devices.GPU_SHARE] for part in parts} == {"0.5"}
    assert len(local.shares(small_on_gpu, 3, 2)) == 3
    with pytest.raises(ConfigError, match=r"need 5 GPUs.* counted 2 times for runs_per_gpu"):
        local.shares(small_on_gpu, 5, 2)
    (alone, _) = local.shares(small_on_gpu, None)
    assert devices.GPU_SHARE not in alone.environment


def test_auto_shares_a_gpu_among_as_many_as_fit(
    small_on_gpu: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 19.6 GiB of next tokens at 32K fit into a sixth of 139.8 GiB, not into a seventh.
    assert local.most_on_a_gpu(small_on_gpu) == 6
    assert local.most_on_a_gpu(small_on_gpu[:3]) == 3
    assert len(local.shares(small_on_gpu, None, "auto")) == 8
    monkeypatch.setenv(devices.GPU_SHARE, "0.5")
    assert devices.device_facts("auto").memory == ACCELERATORS["h200"].memory // 2
    monkeypatch.setenv(devices.GPU_SHARE, "half")
    with pytest.raises(ValueError, match=r"LINEARARD_GPU_SHARE: 'half'; give a number above 0"):
        devices.device_facts("auto")


def test_runs_of_several_gpus_do_not_share_them(on_gpu: list[RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"runs_per_gpu: auto is for runs of one GPU.*nproc=2"):
        local.shares(on_gpu, None, "auto")


def test_no_jobs_at_once_are_refused(on_cpu: list[RunConfig]) -> None:
    with pytest.raises(ConfigError, match="n_jobs: 0; give at least 1"):
        local.shares(on_cpu, 0)


def task_in(folder: Path, name: str = "job", *overrides: str) -> Task:
    sweep = SweepJob("a-sweep", "20260101-000000-12", 3, "1" * 64)
    return Task("seed=1", overrides, folder / name, folder / "logs" / f"{name}.log", sweep)


def test_a_jobs_command_passes_hydra_whatever_its_folder_is_called(
    tmp_path: Path, compose_run: Compose
) -> None:
    """A hash of digits is no number, and quotes, equal signs and commas are part of a name."""
    task = task_in(tmp_path / "it's a=b,c {d}", "job", "model=tiny", "seed=5")
    settings = compose_run(*arguments(task))
    assert (settings.run_dir, settings.seed) == (str(task.run_dir), 5)
    assert settings.sweep == task.sweep


def test_a_job_with_a_checkpoint_goes_on(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    (task.run_dir / "checkpoints" / "step-2").mkdir(parents=True)
    assert arguments(task) == [f"resume='{task.run_dir}'"]


def fake_program(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Jobs run this shell script; $1 is the first override."""
    popen = process.subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        return popen(["bash", "-c", script, "job", *command[3:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(process.subprocess, "Popen", start)


def test_a_failing_job_leaves_the_others_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program(
        monkeypatch,
        'if [ $1 = bad ]; then echo "error: no such text" >&2; exit 2; fi; '
        f'mkdir {tmp_path}/$1; echo \'{{"state": "finished"}}\' > {tmp_path}/$1/run.json',
    )
    tasks = [task_in(tmp_path, name, name) for name in ("one", "bad", "two", "three")]
    order: list[str] = []
    outcomes = local.run(
        tasks,
        [Share(), Share()],
        lambda task: order.append(f"+{task.overrides[0]}"),
        lambda outcome: order.append(f"-{outcome.task.overrides[0]}"),
    )
    assert order[:2] == ["+one", "+bad"], "two at a time, in order"
    failures = {o.task.overrides[0]: o.failure for o in outcomes}
    assert failures == {"one": None, "two": None, "three": None, "bad": "no such text"}


def test_a_killed_job_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(monkeypatch, "kill -9 $$")
    (outcome,) = local.run([task_in(tmp_path)], [Share()], lambda t: None, lambda o: None)
    assert outcome.failure == "killed by signal 9"


def test_an_exit_code_of_0_without_a_finished_run_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program(monkeypatch, "exit 0")
    (outcome,) = local.run([task_in(tmp_path)], [Share()], lambda t: None, lambda o: None)
    assert outcome.failure == "exit code 0"


def test_what_ends_the_sweep_ends_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Renamed when it is written: a shell makes a file before it writes to it.
    written = f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid"
    fake_program(monkeypatch, f"{written}; exec sleep 60")

    def interrupt(task: Task) -> None:
        while not (tmp_path / "pid").is_file():
            pass
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.run([task_in(tmp_path)], [Share()], interrupt, lambda o: None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_a_job_stays_on_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = max(os.sched_getaffinity(0))
    fake_program(monkeypatch, "env -u OMP_NUM_THREADS nproc; echo $OMP_NUM_THREADS")
    share = Share({"OMP_NUM_THREADS": "7"}, frozenset({core}))
    task = task_in(tmp_path)
    assert process.start(task, share).wait() == 0
    assert task.log.read_text().split() == ["1", "7"]
