"""A run's folder: whole files, what a rerun and a resume may touch, and what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from src import run_folder
from src.run_folder import (
    RunFolder,
    RunFolderError,
    check_unused,
    check_writable,
    command_line,
    git_state,
    new_run_id,
    versions,
    whole_checkpoints,
    write_json,
)

CONFIG = {"experiment": "test", "seed": 3, "tags": ["a", "b"]}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "one", config=CONFIG, record={"run_id": "abc"})


def names(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()}


def test_a_new_folder_has_its_config_and_record(folder: RunFolder) -> None:
    assert names(folder.path) == {"config.yaml", "run.json"}
    assert folder.config() == CONFIG
    assert list(yaml.safe_load(folder.config_file.read_text())) == list(CONFIG), "order is kept"
    record = folder.record()
    assert record["run_id"] == "abc"
    assert record["state"] == "running"
    assert (record["step"], record["tokens"], record["seconds"]) == (0, 0, 0.0)
    assert record["finished_at"] is record["error"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["started_at"])


def test_it_is_opened_again(folder: RunFolder) -> None:
    again = RunFolder.open(folder.path)
    assert again.record() == folder.record()
    assert again.config() == CONFIG


@pytest.mark.parametrize("missing", ["config.yaml", "run.json"])
def test_a_folder_without_config_or_record_is_no_run(folder: RunFolder, missing: str) -> None:
    (folder.path / missing).unlink()
    with pytest.raises(RunFolderError, match=f"is not a run folder: it has no {missing}"):
        RunFolder.open(folder.path)


def test_a_path_that_is_not_there_is_no_run(tmp_path: Path) -> None:
    message = r"^resume=.*/nothing is not a run folder: there is no such folder; give the one"
    with pytest.raises(RunFolderError, match=message):
        RunFolder.open(tmp_path / "nothing", "resume")


@pytest.mark.parametrize("content", [b'{"state": "runn', b"\xff\xfe"], ids=["cut", "no_utf8"])
def test_a_broken_record_is_refused_by_its_name(folder: RunFolder, content: bytes) -> None:
    folder.record_file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"run\.json cannot be read"):
        RunFolder.open(folder.path)


@pytest.mark.parametrize("content", [b"a: [1, 2", b"- 1\n- 2\n", b"\xff"], ids=repr)
def test_a_broken_config_is_refused_by_its_name(folder: RunFolder, content: bytes) -> None:
    folder.config_file.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.yaml (cannot be read|holds no mapping)"):
        folder.config()


def test_update_changes_only_what_is_given(folder: RunFolder) -> None:
    before = folder.record()
    folder.update(step=4, stages=[{"name": "ard"}])
    after = folder.record()
    assert after == before | {
        "step": 4,
        "stages": [{"name": "ard"}],
        "updated_at": after["updated_at"],
    }


@pytest.mark.parametrize(
    ("state", "error"),
    [("finished", None), ("failed", "OSError: full"), ("interrupted", "stopped")],
)
def test_end_says_how_and_when(folder: RunFolder, state: str, error: str | None) -> None:
    folder.end(state, error)
    record = folder.record()
    assert (record["state"], record["error"]) == (state, error)
    assert record["finished_at"] is not None


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen at the moment before the swap is the old file, and the new one beside it."""
    file = tmp_path / "run.json"
    write_json(file, {"n": 1})
    seen: list[tuple[object, object]] = []
    replace = Path.replace

    def watched(partial: Path, target: Path) -> Path:
        seen.append((json.loads(target.read_text()), json.loads(partial.read_text())))
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_json(file, {"n": 2})
    assert seen == [({"n": 1}, {"n": 2})]
    assert json.loads(file.read_text()) == {"n": 2}
    assert names(tmp_path) == {"run.json"}


@pytest.mark.parametrize("value", [math.nan, math.inf, Path("x")], ids=["nan", "inf", "object"])
def test_what_json_cannot_hold_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, value: object
) -> None:
    file = tmp_path / "run.json"
    write_json(file, {"n": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(file, {"n": 2, "bad": value})
    assert json.loads(file.read_text()) == {"n": 1}
    assert names(tmp_path) == {"run.json"}


def test_metrics_are_lines_of_json_without_nan(folder: RunFolder) -> None:
    folder.log({"step": 1, "loss/total": 0.5, "loss/by_layer": [1.0, math.nan], "stage": "ard"})
    folder.log({"step": 2, "loss/total": math.inf, "more": {"deep": (-math.inf, 2.0)}})
    folder.log({"step": 3, "loss/total": np.float64("nan"), "on": True})
    assert folder.metrics() == [
        {"step": 1, "loss/total": 0.5, "loss/by_layer": [1.0, None], "stage": "ard"},
        {"step": 2, "loss/total": None, "more": {"deep": [None, 2.0]}},
        {"step": 3, "loss/total": None, "on": True},
    ]
    lines = folder.metrics_file.read_text().splitlines()
    assert len(lines) == 3
    assert not any("NaN" in line or "Infinity" in line for line in lines)


def test_there_may_be_no_metrics_yet(folder: RunFolder) -> None:
    folder.forget_metrics()
    assert folder.metrics() == []
    folder.log({"step": 1})
    folder.forget_metrics()
    assert not folder.metrics_file.exists()


@pytest.mark.parametrize("line", ["[]", "\xff", '{"loss": 1}', "[" * 10_000, "1" * 9999], ids=len)
def test_a_damaged_line_is_named(folder: RunFolder, line: str) -> None:
    folder.metrics_file.write_bytes(line.encode("latin-1") + b'\n{"step": 2}\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 1: "):
        folder.metrics()


@pytest.mark.parametrize("cut", ["", '{"step": 3, "lo', '{"step": 3, "loss/total": 0.1'], ids=len)
def test_a_line_cut_short_by_a_kill_is_left_out(folder: RunFolder, cut: str) -> None:
    folder.log({"step": 1})
    folder.log({"step": 2})
    with folder.metrics_file.open("a") as file:
        file.write(cut)
    assert folder.metrics() == [{"step": 1}, {"step": 2}]


def test_a_broken_line_in_the_middle_is_an_error(folder: RunFolder) -> None:
    folder.metrics_file.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 2"):
        folder.metrics()


def test_unused_paths_are_accepted(tmp_path: Path) -> None:
    check_unused(tmp_path / "new" / "deep")
    check_unused(tmp_path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"run_dir=.*file is a file: name a new folder"):
        check_unused(tmp_path / "file")


def test_somebody_elses_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path, config=CONFIG, record={})
    assert names(tmp_path) == {"thesis.txt"}


def test_a_run_with_a_checkpoint_is_refused_with_the_way_to_resume(folder: RunFolder) -> None:
    (folder.checkpoints / "step-10").mkdir(parents=True)
    before = folder.record_file.read_bytes()
    with pytest.raises(RunFolderError, match=f"go on with resume={folder.path}"):
        RunFolder.create(folder.path, config=CONFIG, record={})
    assert folder.record_file.read_bytes() == before


def test_a_finished_run_is_refused(folder: RunFolder) -> None:
    folder.export().mkdir()
    with pytest.raises(RunFolderError, match="holds a finished run"):
        RunFolder.create(folder.path, config=CONFIG, record={})
    assert folder.export().is_dir()


def test_a_rerun_without_a_checkpoint_starts_anew_beside_foreign_files(folder: RunFolder) -> None:
    folder.log({"step": 1})
    folder.end("failed", "OSError")
    ours = ("checkpoints/step-5.partial", "logs", "evals", "export-ard", "wandb/offline-run")
    for made in (*ours, "tensorboard", "replay", "profile"):
        (folder.path / made).mkdir(parents=True)
        (folder.path / made / "file").write_text("old")
    (folder.path / "notes.md").write_text("mine")
    (folder.path / "plots").mkdir()
    (folder.path / "plots" / "loss.png").write_text("mine")

    again = RunFolder.create(folder.path, config={"seed": 4}, record={"run_id": "new"})
    assert names(again.path) == {"config.yaml", "run.json", "notes.md", "plots"}
    assert (again.path / "notes.md").read_text() == "mine"
    assert names(again.path / "plots") == {"loss.png"}
    assert again.config() == {"seed": 4}
    assert (again.record()["run_id"], again.record()["state"]) == ("new", "running")
    assert again.metrics() == []


def test_a_foreign_file_that_is_called_like_an_export_stays(folder: RunFolder) -> None:
    (folder.path / "export-notes.txt").write_text("mine")
    RunFolder.create(folder.path, config=CONFIG, record={})
    assert (folder.path / "export-notes.txt").read_text() == "mine"


def test_checkpoints_are_sorted_by_number_and_whole(folder: RunFolder) -> None:
    assert whole_checkpoints(folder) == []
    for name in ("step-100", "step-9", "step-20", "step-200.partial", "step-x", "step-", "other"):
        (folder.checkpoints / name).mkdir(parents=True)
    found = [p.name for p in whole_checkpoints(folder)]
    assert found == ["step-9", "step-20", "step-100"]


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state_in_a_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": True}


def test_git_state_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The temporary folder itself may lie in somebody's repository.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None}


def test_git_state_where_git_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None}


def test_run_ids_differ_within_a_second() -> None:
    made = {new_run_id() for _ in range(50)}
    assert len(made) == 50
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", run_id) for run_id in made)


def test_versions_name_what_decides_a_result() -> None:
    import torch

    found = versions()
    assert found["torch"] == torch.__version__
    assert {"python", "transformers", "deepspeed", "peft"} <= found.keys()


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_PACKAGES", ("no-such-package-here",))
    assert versions()["no-such-package-here"] == "not installed"


def test_the_command_can_be_typed_again() -> None:
    argv = [os.fspath(Path("/x/src/train.py")), "+experiment=quickstart", "tags=[a b]"]
    assert command_line(argv) == "python -m src.train +experiment=quickstart 'tags=[a b]'"


def test_only_the_owner_reads_what_holds_commands(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", config={"a": 1}, record={"command": "c"})
    folder.update(tokens=1)
    modes = {f.name: f.stat().st_mode & 0o777 for f in (folder.record_file, folder.config_file)}
    assert modes == {"run.json": 0o600, "config.yaml": 0o600}


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x/y", "a\0b"], ids=repr)
def test_a_folder_that_cannot_be_made_is_refused(place: str) -> None:
    with pytest.raises(RunFolderError, match=r"run_dir=.*(cannot be made|no folder can have)"):
        check_writable(Path(place), f"run_dir={place}")


def test_asking_whether_a_folder_can_be_made_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "run_dir=b")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_had_begun_to_write_is_removed(folder: RunFolder) -> None:
    (folder.path / "..reserve.123.partial").write_bytes(b"x")
    (folder.path / ".run.json.123.partial").write_bytes(b"x")
    folder.remove_partials()
    assert names(folder.path) == {"config.yaml", "run.json"}
