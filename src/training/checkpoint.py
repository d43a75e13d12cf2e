"""Save and resume training.

A checkpoint holds the trained weights and the optimizer's moments, a file a rank, copies of the
run's records, and a manifest with the position of the run and the SHA-256 of every file. Data and
random numbers are functions of the step, so they need no saving. A checkpoint is written under
another name, flushed and renamed, so a folder named step-N was complete; the manifest shows whether
it still is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml
from torch import distributed

from src import environment
from src.assets.cache import remove
from src.manifest import DamageError, FileDigest, digest_of, read_manifest, verify, write_manifest
from src.planning.devices import host_memory
from src.run_folder import RunFolder, sync_folder, unsealed, whole_checkpoints, write_whole
from src.training.launch import LaunchError
from src.training.tensor_files import Part, SavedState, total_bytes, write

if TYPE_CHECKING:
    from src.training.engine.student import Student

_Made = TypeVar("_Made")
# Settings that a user may change between two parts of a run: they do not decide what is trained.
_FREE = ("run_dir", "resume", "launch", "checkpoint", "tracking", "eval", "tags", "profile")
_FREE += ("allow_oversubscribe", "dry_run", "prepare", "plan_for", "sweep", "sweep_resume")
# Room for the manifest and the file system's own tables beside the files of a checkpoint.
_SPARE = 2**20


class CheckpointError(ValueError):
    """Checkpoints from which no run can resume."""


class SaveError(LaunchError):
    """A checkpoint that could not be written. The ones before it are whole."""


class OtherSettingsError(DamageError):
    """A checkpoint of other settings than the run folder's."""


@dataclass(frozen=True)
class Position:
    """Steps finished in the run and in its current stage, tokens read, and the number of ranks."""

    step: int
    stage: str
    stage_step: int
    tokens: int
    world_size: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk."""

    path: Path
    position: Position

    def state(self) -> SavedState:
        """Its weights and moments, of all ranks that wrote it."""
        return SavedState(sorted(self.path.glob("rank-*.safetensors")))


class Saver:
    """Writes a run's checkpoints; use it as a context, which ends when all are written.

    One rank whose state is on a GPU copies it to the host, and trains on while a thread hashes and
    writes it.

    Args:
        folder: the run's.
        keep: how many checkpoints stay.
    """

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1)
        self._writing: tuple[Future[None], Callable[[], None]] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._thread:
            self.wait()

    def save(
        self, student: Student, position: Position, saved: Callable[[], None] = lambda: None
    ) -> None:
        """Write a checkpoint and drop the oldest beyond `keep`; all ranks call it.

        Args:
            student: that is saved.
            position: of the run.
            saved: called on every rank when the checkpoint is written: now, or by `wait`.

        Raises:
            FloatingPointError: a weight or a moment is not finite. Nothing is written.
            SaveError: there is too little space, or a rank could not write; or so it was with the
                checkpoint before. The partial folder is removed.
        """
        self.wait()
        parts = student.state()
        _refuse_not_finite(self.folder, parts, position)
        what = self.folder, position, self._keep, _copy_records(self.folder)
        if _writes_in_background(parts):
            copied = [replace(p, values=p.values.to("cpu", copy=True)) for p in parts]
            self._writing = self._thread.submit(_save, *what, copied), saved
        else:
            _save(*what, parts)
            saved()

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            SaveError: it could not be.
        """
        if self._writing is not None:
            (written, saved), self._writing = self._writing, None
            written.result()
            saved()


def _writes_in_background(parts: Sequence[Part]) -> bool:
    """Whether there is a GPU to train on meanwhile, and room for a copy in the host's memory."""
    return (
        distributed.get_world_size() == 1
        and any(part.values.is_cuda for part in parts)
        and total_bytes(parts) < host_memory() / 8
    )


def _copy_records(folder: RunFolder) -> dict[str, bytes]:
    """The run's records as they are at this step; later steps add to them."""
    if distributed.get_rank() != 0:
        return {}
    files = (folder.record_file, folder.config_file, folder.metrics_file)
    return {file.name: file.read_bytes() for file in files}


def _save(
    folder: RunFolder,
    position: Position,
    keep: int,
    records: Mapping[str, bytes],
    parts: Sequence[Part],
) -> None:
    target = folder.checkpoints / f"step-{position.step}"
    partial = target.with_name(f"{target.name}.partial")
    rank = distributed.get_rank()
    sizes = _on_all(folder, lambda: total_bytes(parts))

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _check_space(folder, target.name, sum(sizes))

    def written() -> dict[str, FileDigest]:
        name = f"rank-{rank:04d}.safetensors"
        return {name: write(partial / name, parts)} if parts else {}

    try:
        _on_all(folder, begin, main_only=True)
        files = {name: it for each in _on_all(folder, written) for name, it in each.items()}
        finish = functools.partial(_finish, folder, target, position, files, records, keep)
        _on_all(folder, finish, main_only=True)
    finally:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)


def _refuse_not_finite(folder: RunFolder, parts: Sequence[Part], position: Position) -> None:
    """All parts are looked at on the device, which the host asks once."""
    bad: list[str] = []
    if parts:
        device = parts[0].values.device
        wrong = torch.stack([~part.values.isfinite().all().to(device) for part in parts]).tolist()
        bad = [f"{p.kind} of {p.name}" for p, is_bad in zip(parts, wrong, strict=True) if is_bad]
    names = sorted({name for of_rank in _on_all(folder, lambda: bad) for name in of_rank})
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise FloatingPointError(
            f"stage {position.stage}, step {position.step}: {names[0]}{more} is not finite after "
            "the last update, and nothing was saved: lower the stage's lr and start anew, or go on "
            f"from the checkpoint before with resume={folder.path}"
        )


def _finish(
    folder: RunFolder,
    target: Path,
    position: Position,
    files: Mapping[str, FileDigest],
    records: Mapping[str, bytes],
    keep: int,
) -> None:
    partial = target.with_name(f"{target.name}.partial")
    for name, content in records.items():
        write_whole(partial / name, content)
    copies = {name: digest_of(partial / name) for name in records}
    facts = {"position": asdict(position), "config_sha256": config_sha256(folder.config())}
    write_manifest(partial, {**files, **copies}, **facts)
    sync_folder(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync_folder(target.parent)
    for old in whole_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def _on_all(
    folder: RunFolder, work: Callable[[], _Made], *, main_only: bool = False
) -> list[_Made]:
    """Each rank's result. If the work fails on one rank it fails on all, so that none waits."""
    made: Any = None
    failure: OSError | None = None
    try:
        if distributed.get_rank() == 0 or not main_only:
            made = work()
    except OSError as error:
        failure = error
    answers: list[Any] = [(made, failure and str(failure))]
    if distributed.get_world_size() > 1:
        answers = [None] * distributed.get_world_size()
        distributed.all_gather_object(answers, (made, failure and str(failure)))
    for rank, (_, why) in enumerate(answers):
        if why is not None:
            raise SaveError(
                f"a checkpoint in {folder.checkpoints} cannot be written (rank {rank}: {why}); "
                f"the ones before it are whole: mend this, then go on with resume={folder.path}"
            ) from failure
    return [made for made, _ in answers]


def _check_space(folder: RunFolder, name: str, needed: int) -> None:
    if folder.metrics_file.is_file():
        needed += folder.metrics_file.stat().st_size
    free = shutil.disk_usage(folder.checkpoints).free
    if free < needed + _SPARE:
        raise OSError(
            f"{name} needs {needed / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free; free some, or "
            "keep fewer checkpoints (checkpoint.keep in config.yaml)"
        )


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of the settings that decide what is trained."""
    decisive = {key: value for key, value in config.items() if key not in _FREE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def newest(folder: RunFolder) -> Checkpoint | None:
    """The newest checkpoint by its manifest; its files are those that `verified` has read.

    Raises:
        DamageError: its manifest has been damaged since.
    """
    checkpoints = whole_checkpoints(folder)
    return _read(checkpoints[-1], read_manifest(checkpoints[-1])) if checkpoints else None


def verified(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones.

    Every file of a checkpoint is read and hashed. A damaged one is renamed to `step-N.damaged`.

    Raises:
        CheckpointError: all that are whole are of other settings than config.yaml has.
    """
    skipped: list[tuple[Path, DamageError]] = []
    chosen = None
    for path in reversed(whole_checkpoints(folder)):
        try:
            chosen = _verified(folder, path)
            break
        except DamageError as error:
            skipped.append((path, error))
    if chosen is None:
        _refuse_others(folder, skipped)
    for path, _ in skipped:
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return chosen, [f"skipped checkpoints/{path.name}: {error}" for path, error in skipped]


def _verified(folder: RunFolder, path: Path) -> Checkpoint:
    content = verify(path)
    checkpoint = _read(path, content)
    config = folder.config()
    if content["config_sha256"] != config_sha256(config):
        raise OtherSettingsError(f"it was written with other settings than {folder.config_file}")
    stages = list(config["recipe"]["stages"])
    if before := stages[: stages.index(checkpoint.position.stage)]:
        try:
            verify(folder.export(before[-1]))
        except DamageError as error:
            raise DamageError(f"its stage began with export-{before[-1]}, where {error}") from error
    return checkpoint


def _read(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    position = Position(**content["position"])
    if path.name != f"step-{position.step}":
        raise DamageError(f"it holds step {position.step}")
    return Checkpoint(path, position)


def _refuse_others(folder: RunFolder, skipped: list[tuple[Path, DamageError]]) -> None:
    for path, error in skipped:
        if isinstance(error, OtherSettingsError):
            names = sorted(environment.variables(folder.stored_config()))
            set_again = f" set {', '.join(names)} as before," if names else ""
            raise CheckpointError(
                f"config.yaml: {path} was written with other settings;{set_again} put the copy "
                f"{path / folder.config_file.name} back, or start a new run with another run_dir"
            ) from error


def restore_records(folder: RunFolder) -> list[str]:
    """Replace a damaged run.json or config.yaml by the newest whole checkpoint's copy.

    Returns:
        what was damaged, and where the copy came from.
    """
    faults = {
        folder.record_file: _fault(folder.record_file, lambda text: unsealed(json.loads(text))),
        folder.config_file: _fault(folder.config_file, yaml.safe_load),
    }
    said: list[str] = []
    for path in reversed(whole_checkpoints(folder)):
        if not any(faults.values()):
            break
        try:
            position = _read(path, verify(path)).position
        except DamageError:
            continue  # `verified` says so
        for file, fault in faults.items():
            if fault is not None:
                remove(file)
                write_whole(file, (path / file.name).read_bytes())
                said.append(f"{file.name} {fault}: took the copy of {path.name}")
        if faults[folder.record_file] is not None:
            folder.update(step=position.step, tokens=position.tokens)
        return said
    left = [
        f"{file.name} {fault}, and no checkpoint has a copy"
        for file, fault in faults.items()
        if fault
    ]
    return said + left


def _fault(file: Path, read: Callable[[str], Any]) -> str | None:
    """What is wrong with a record, None if nothing is."""
    if file.exists() and not file.is_file():
        return "is not a regular file"
    try:
        content = read(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        return f"is damaged ({str(error).splitlines()[0]})"
    return None if isinstance(content, dict) else "holds no mapping"


def restore_metrics(folder: RunFolder, checkpoint: Checkpoint) -> str | None:
    """Give metrics.jsonl the lines that it had at a checkpoint; returns what was wrong with them.

    Lines of later steps are dropped, as these are trained again.
    """
    kept = (checkpoint.path / folder.metrics_file.name).read_bytes()
    logged = folder.metrics_file.read_bytes() if folder.metrics_file.is_file() else b""
    if logged != kept:
        remove(folder.metrics_file)
        write_whole(folder.metrics_file, kept)
    if not logged.startswith(kept):
        return f"metrics.jsonl was damaged: took the copy of {checkpoint.path.name}"
    if logged and not logged.endswith(b"\n"):
        return "metrics.jsonl: dropped its last line, which was cut off"
    return None
