"""The folder of a run: config, record, metrics, checkpoints, exports, evaluations, logs."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from src import environment

SCHEMA = 1
# Space that is given up when the disk is full, so that the end of the run can be recorded.
RESERVE = ".reserve"
_RESERVED_BYTES = 2**18
# Locked by the process that runs the folder.
LOCK = ".lock"
# The key of a JSON file's own SHA-256.
SEAL = "sha256"
_PACKAGES = ("torch", "triton", "transformers", "deepspeed", "peft", "datasets", "tokenizers")
_PACKAGES += ("numpy", "hydra-core", "omegaconf", "wandb", "lm_eval")


class RunFolderError(ValueError):
    """A folder that is not a run's folder, or that a new run cannot use."""


def new_run_id() -> str:
    """An id that differs even between jobs started in the same second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def git_state(root: Path) -> dict[str, Any]:
    """The commit of the code, and whether files differ from it; None where git cannot tell."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        return None if done.returncode else done.stdout.strip()

    head = git("rev-parse", "HEAD") if shutil.which("git") else None
    changes = None if head is None else git("status", "--porcelain")
    return {"git_commit": head, "git_dirty": None if changes is None else bool(changes)}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON as `write_whole` does."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with the SHA-256 of its content, so that `unsealed` notices a change."""
    # As it will be read: keys are text, tuples are lists.
    plain = json.loads(json.dumps(value, allow_nan=False))
    plain.pop(SEAL, None)
    write_json(path, plain | {SEAL: _seal(plain)})


def unsealed(value: Any) -> dict[str, Any]:
    """What `write_sealed` wrote, without the seal.

    Raises:
        ValueError: the content was changed since, or was never sealed.
    """
    if not isinstance(value, dict):
        raise ValueError("it holds no object")
    plain = {key: inner for key, inner in value.items() if key != SEAL}
    if value.get(SEAL) != _seal(plain):
        raise ValueError("its content and its SHA-256 differ")
    return plain


def _seal(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: it has its old content or its new one, even after a crash.

    Only its owner may read it: records hold commands, which may hold secrets.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb", opener=functools.partial(os.open, mode=0o600)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: a renamed file then keeps its name after a crash."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Each checkpoint asks for its run's config, which takes a while to parse.
_parsed = functools.lru_cache(maxsize=2)(yaml.safe_load)


class RunFolder:
    """A run's folder and the record it holds.

    Attributes:
        record_file: state, seed, commit, versions, device, tokens, seconds.
        metrics_file: one object for each logged step.
        logs: output of ranks other than 0.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.record_file = path / "run.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.evals = path / "evals"

    def export(self, stage: str | None = None) -> Path:
        """The final model, or the one an earlier stage ended with."""
        return self.path / ("export" if stage is None else f"export-{stage}")

    @classmethod
    def create(
        cls, path: Path, *, config: Mapping[str, Any], record: Mapping[str, Any]
    ) -> RunFolder:
        """Make the folder with its config and its first record.

        A rerun over a folder without a complete checkpoint starts anew: the files of the earlier
        attempt are removed.

        Raises:
            RunFolderError: the path holds something else, or a run that can be resumed.
        """
        folder = cls(path)
        check_unused(path)
        if path.exists():
            _clear(folder)
        path.mkdir(parents=True, exist_ok=True)
        start = {"schema": SCHEMA, "state": "running", "error": None, "started_at": _now()}
        start |= {"updated_at": start["started_at"], "finished_at": None, "seconds": 0.0}
        start |= {"tokens": 0, "step": 0, "stages": []}
        write_sealed(folder.record_file, start | environment.all_redacted(record))
        # Written second: a start that is cut off in between still counts as one that starts anew.
        text = yaml.safe_dump(environment.all_redacted(dict(config)), sort_keys=False)
        write_whole(folder.config_file, text.encode())
        return folder

    @classmethod
    def open(cls, path: Path, key: str | None = None) -> RunFolder:
        """An existing run's folder; `key` is the setting that names it, for messages.

        Raises:
            RunFolderError: the path has no readable config.yaml and run.json.
        """
        folder, named = cls(path), f"{key}={path}" if key else str(path)
        if not path.is_dir():
            raise RunFolderError(
                f"{named} is not a run folder: there is no such folder; give the one that a run's "
                "last line names"
            )
        for file in (folder.config_file, folder.record_file):
            if not file.is_file():
                raise RunFolderError(
                    f"{named} is not a run folder: it has no {file.name}; give the folder that a "
                    "run's last line names"
                )
        folder.record()
        return folder

    def config(self) -> dict[str, Any]:
        """The config of the run, with environment variables as they are now.

        Raises:
            RunFolderError: it cannot be read, or a variable that it refers to is not set.
        """
        try:
            return environment.resolved(self.stored_config())
        except environment.MissingVariableError as error:
            raise RunFolderError(f"{self.config_file}: {error}") from error

    def stored_config(self) -> dict[str, Any]:
        """The config as it is stored: with references to environment variables.

        Raises:
            RunFolderError: it cannot be read.
        """
        return copy.deepcopy(_mapping(self.config_file, _parsed))

    def record(self) -> dict[str, Any]:
        """The contents of run.json, without its seal.

        A change by hand is let through here; `src.training.checkpoint.restore_records` notices it.

        Raises:
            RunFolderError: it cannot be read.
        """
        content = _mapping(self.record_file, json.loads)
        return {key: value for key, value in content.items() if key != SEAL}

    def update(self, **values: Any) -> None:
        """Change entries of run.json."""
        write_sealed(
            self.record_file,
            self.record() | {"updated_at": _now()} | environment.all_redacted(values),
        )

    def remove_partials(self) -> None:
        """Remove what a killed process had begun to write; call it under the lock."""
        for file in (*self.path.glob(".*.partial"), *self.evals.glob(".*.partial")):
            file.unlink(missing_ok=True)

    def reserve(self) -> None:
        """Take the space that the record needs if the disk is full later."""
        write_whole(self.path / RESERVE, os.urandom(_RESERVED_BYTES))

    def end(self, state: str, error: str | None = None) -> None:
        """Record how the run ended: finished, failed or interrupted.

        The reserved space is given up first, so a full disk does not prevent it; and a write that
        fails is tried once more.
        """
        (self.path / RESERVE).unlink(missing_ok=True)
        ending = {"state": state, "error": error, "finished_at": _now()}
        try:
            self.update(**ending)
        except OSError:
            self.update(**ending)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; a value that is not finite is written as null."""
        line = json.dumps(environment.all_redacted(_finite(metrics)), allow_nan=False)
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def forget_metrics(self) -> None:
        """Drop the lines of steps that a run repeats from the start."""
        self.metrics_file.unlink(missing_ok=True)

    def metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl.

        Raises:
            RunFolderError: a line is damaged.
        """
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_bytes().splitlines()
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                    raise ValueError("it is no object with a step")
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break  # the run was killed while it wrote its last line
                raise RunFolderError(f"{self.metrics_file}, line {number}: {error}") from error
            entries.append(entry)
        return entries


def _mapping(file: Path, read: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = read(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{file} holds no mapping")
    return content


def check_unused(path: Path) -> None:
    """Refuse a path that a new run must not use.

    Raises:
        RunFolderError: it is a file, holds something else than a run, or a run with a checkpoint.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise RunFolderError(f"run_dir={path} is a file: name a new folder")
    folder = RunFolder(path)
    if all(child.name == LOCK for child in path.iterdir()):
        return
    if not folder.record_file.is_file():
        raise RunFolderError(f"run_dir={path} is not empty and holds no run: name a new folder")
    if whole_checkpoints(folder):
        raise RunFolderError(
            f"run_dir={path} holds a run with checkpoints: go on with resume={path}, or name a new "
            "folder"
        )
    if folder.export().exists():
        raise RunFolderError(f"run_dir={path} holds a finished run: name a new folder")


def check_writable(path: Path, setting: str) -> None:
    """Refuse a folder that cannot be made or written; leaves nothing behind.

    Raises:
        RunFolderError: with the setting, why, and the remedy.
    """
    if "\0" in str(path):
        raise RunFolderError(f"{setting!r}: no folder can have this name; leave the NUL out")
    try:
        there = next(p for p in (path, *path.parents) if p.exists())
    except OSError as error:
        raise RunFolderError(f"{setting}: no folder can have this name ({error})") from error
    why = "is no folder"
    if there.is_dir():
        try:
            # The rights alone do not tell it: some file systems take no new folder from anybody.
            Path(tempfile.mkdtemp(dir=there, prefix=".writable-")).rmdir()
            return
        except OSError as error:
            why = f"may not be written ({error.strerror})"
    raise RunFolderError(f"{setting}: it cannot be made, because {there} {why}; name another")


def whole_checkpoints(folder: RunFolder) -> list[Path]:
    """The complete checkpoints of the run, oldest first."""
    complete = [p for p in folder.checkpoints.glob("step-*") if p.name[5:].isdigit()]
    return sorted(complete, key=lambda p: int(p.name[5:]))


def command_line(argv: Sequence[str]) -> str:
    """The command as typed, for the record."""
    module = "src.train" if Path(argv[0]).stem == "train" else Path(argv[0]).stem
    return shlex.join(["python", "-m", module, *argv[1:]])


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _clear(folder: RunFolder) -> None:
    """Remove the files that a run writes, and no others."""
    folder.remove_partials()
    ours = ("checkpoints", "logs", "evals", "replay", "profile", "wandb", "tensorboard")
    for name in ours:
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for export in folder.path.glob("export-*/"):
        shutil.rmtree(export)
    for file in (folder.config_file, folder.record_file, folder.metrics_file):
        file.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
