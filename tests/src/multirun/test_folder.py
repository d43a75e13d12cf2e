"""The folder of a sweep: what it knows of its jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from src.multirun.composition import Job
from src.multirun.folder import SweepError, SweepFolder, Task, best_tasks, earlier, failure_of
from src.run_folder import LOCK
from src.settings.config import RunConfig


@pytest.fixture(scope="module")
def jobs(compose_run: Callable[..., RunConfig]) -> list[Job]:
    return [
        Job(n, (f"seed={n}",), (f"seed={n}",), compose_run("model=tiny", f"seed={n}"), None)
        for n in (1, 2, 3)
    ]


def sweep_in(path: Path) -> SweepFolder:
    return SweepFolder.create(path, "seeds", "a command")


def leave(task: Task, state: str, **more: object) -> None:
    task.run_dir.mkdir(parents=True)
    (task.run_dir / "run.json").write_text(json.dumps({"state": state, **more}))


def test_it_knows_its_jobs_by_hash(tmp_path: Path, jobs: list[Job]) -> None:
    folder = sweep_in(tmp_path / "s").holding(jobs[:2]).holding(jobs)
    again = SweepFolder.open(tmp_path / "s")
    assert again == folder
    assert [job.hash for job in again.record.jobs] == [job.hash for job in jobs]
    task = again.task(jobs[2])
    assert task.run_dir == tmp_path / "s" / f"003-{jobs[2].hash[:8]}"
    assert (task.sweep.name, task.sweep.job, task.sweep.hash) == ("seeds", 3, jobs[2].hash)
    assert task.sweep.id == folder.record.id


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    sweep_in(tmp_path / "s")
    with pytest.raises(SweepError, match="holds a sweep: add sweep_resume=true, or name a new"):
        sweep_in(tmp_path / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(SweepError, match="is not empty: name a new folder"):
        sweep_in(tmp_path / "other")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(SweepError, match=r"sweep\.json cannot be read"):
        earlier("seeds", tmp_path)


def test_nothing_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert earlier("seeds", None) == []
    assert earlier("seeds", tmp_path) == []


def test_earlier_sweeps_come_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("20260101-000000-aaa", "20260202-000000-aaa"):
        sweep_in(tmp_path / "outputs" / "sweeps" / "seeds" / name)
    assert [f.path.name[:8] for f in earlier("seeds", None)] == ["20260202", "20260101"]


def test_states(tmp_path: Path, jobs: list[Job]) -> None:
    task = sweep_in(tmp_path / "s").holding(jobs).task(jobs[0])
    assert task.state == "missing"
    leave(task, "running")
    assert task.state == "interrupted", "nobody holds it"
    with FileLock(task.run_dir / LOCK):
        assert task.state == "running"
    for state in ("finished", "failed", "interrupted"):
        (task.run_dir / "run.json").write_text(json.dumps({"state": state}))
        assert task.state == state
    (task.run_dir / "run.json").write_text("{")
    assert task.state == "failed"


def test_a_finished_run_counts_wherever_it_is(tmp_path: Path, jobs: list[Job]) -> None:
    old = sweep_in(tmp_path / "old").holding(jobs[:2])
    new = sweep_in(tmp_path / "new").holding(jobs)
    leave(old.task(jobs[0]), "finished")
    leave(new.task(jobs[0]), "failed")
    leave(old.task(jobs[1]), "failed")
    best = best_tasks(jobs, [new, old])
    assert best[jobs[0].hash].run_dir.parent == old.path
    assert best[jobs[1].hash].run_dir.parent == new.path
    assert best[jobs[2].hash].run_dir.parent == new.path


def test_one_command_runs_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.multirun.folder._PATIENCE", 0.1)
    folder = sweep_in(tmp_path / "s")
    with folder.lock(), pytest.raises(SweepError, match="is being run by another command"):
        folder.lock()


def test_why_a_job_failed(tmp_path: Path, jobs: list[Job]) -> None:
    task = sweep_in(tmp_path / "s").holding(jobs).task(jobs[0])
    assert failure_of(task, "exit code 1") == "exit code 1"
    task.log.parent.mkdir()
    task.log.write_text("error: an older one\nsome output\nerror: no such text\n")
    assert failure_of(task, "exit code 2") == "no such text"
    leave(task, "failed", error="ValueError: loss is not finite\nmore")
    assert failure_of(task, "exit code 1") == "ValueError: loss is not finite"
