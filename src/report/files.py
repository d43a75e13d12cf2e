"""Files of run folders and of benchmarks as typed records; evaluations are in `src.results`.

Every reader raises `UnreadableFile`, whose message is a reason to show beside the run. Run folders
may come from anywhere, so only regular files of a bounded size are opened, and no link is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from src.results import first_reason

State = Literal["running", "finished", "failed", "interrupted"]

_PLAIN = str | int | float | bool | None
_NOT_SETTINGS = {"name", "value", "unit", "device"}  # of a row of a benchmark
MOST_BYTES = 256 << 20
_MOST_CONFIG_BYTES = 4 << 20
_DEEPEST_CONFIG = 64
_MOST_VALUES = 100_000
# Marks of YAML that nest without indentation.
_NESTING = (b"[", b"{", b"- ", b"-\n", b"? ")
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one reads ten times faster


class UnreadableFile(ValueError):
    """A file of a run folder is missing, cut off or not of the expected form."""


class AbsentFile(UnreadableFile):
    """The file is missing or empty, which is normal in a run that has just begun."""


def _in_utc(moment: datetime) -> datetime:
    """A time in UTC; a time without a zone is taken as UTC, so that times can be compared."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{moment} is out of range") from error


Moment = Annotated[datetime, AfterValidator(_in_utc)]


class Record(BaseModel):
    """A file's content; keys that are not known are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)


class SweepRecord(Record):
    """Which job of which sweep a run is."""

    name: str
    job: str | int | None = None


class RunRecord(Record):
    """`run.json`: the run's settings, its progress and its device."""

    schema_version: Literal[1] = Field(alias="schema")
    run_id: str
    state: State
    experiment: str | None = None
    method: str | None = None
    model: str | None = None
    error: str | None = None
    command: str | None = None
    seed: int | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    started_at: Moment | None = None
    updated_at: Moment | None = None
    device: str | None = None
    world_size: PositiveInt = 1
    tokens: NonNegativeInt = 0
    step: NonNegativeInt = 0
    seconds: FiniteFloat | None = None
    sweep: SweepRecord | None = None


class RopeSettings(Record):
    """The scaling in a run's config."""

    type: str | None = None
    target_length: int | None = None
    factor: float | None = None


class ModelSettings(Record):
    """The model in a run's config."""

    name: str | None = None
    native_window: int | None = None
    random_weights: bool = False


class StageSettings(Record):
    """A stage in a run's config."""

    merge: str | None = None


class RecipeSettings(Record):
    """The recipe in a run's config."""

    stages: dict[str, StageSettings] = {}


class RunSettings(Record):
    """The part of `config.yaml` that the report understands."""

    rope: RopeSettings = RopeSettings()
    model: ModelSettings = ModelSettings()
    recipe: RecipeSettings = RecipeSettings()

    @property
    def merges(self) -> bool:
        """Whether a stage merges the trained weights with the native ones."""
        return any(stage.merge for stage in self.recipe.stages.values())

    @property
    def factor(self) -> float | None:
        """The config's factor, or else the target divided by the native window."""
        if self.rope.factor is not None:
            return self.rope.factor
        if not self.rope.target_length or not self.model.native_window:
            return None
        return self.rope.target_length / self.model.native_window


@dataclass(frozen=True)
class ConfigFile:
    """`config.yaml`: as text, as plain values, and the settings that the report understands."""

    text: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    settings: RunSettings = field(default_factory=RunSettings)


_AnyRecord = TypeVar("_AnyRecord", bound=Record)


def open_regular(path: Path, most: int = MOST_BYTES) -> BinaryIO:
    """Open a regular file, neither through a link nor in a linked folder.

    Raises:
        OSError: it is missing, of another kind, larger than `most` bytes, or access is refused.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Asked before it is opened: opening a device can have effects.
        _check_regular(os.stat(path.name, dir_fd=folder, follow_symlinks=False), most)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        file = os.fdopen(os.open(path.name, flags, dir_fd=folder), "rb")
    finally:
        os.close(folder)
    try:
        _check_regular(os.fstat(file.fileno()), most)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, most: int) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a link, which is not followed")
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file that `open_regular` opens; raises OSError."""
    with open_regular(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")
    return content


def is_regular(path: Path) -> bool:
    """Whether `open_regular` opens a file of this kind."""
    try:
        open_regular(path).close()
        return True
    except OSError:
        return False


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The file's content; raises `AbsentFile`, or `UnreadableFile` where it is not opened."""
    try:
        content = read_regular(path, most)
    except FileNotFoundError:
        raise AbsentFile(f"{path.name} is missing") from None
    except OSError as error:
        raise UnreadableFile(f"{path.name} cannot be read ({error.strerror})") from error
    if not content.strip():
        raise AbsentFile(f"{path.name} is empty")
    return content


def read_json(path: Path, kind: type[_AnyRecord]) -> _AnyRecord:
    """The JSON file as `kind`; raises `UnreadableFile`."""
    content = read_bytes(path)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise UnreadableFile(f"{path.name}: {first_reason(error)}") from error


def read_config(path: Path) -> ConfigFile:
    """A run's `config.yaml`; raises `UnreadableFile`."""
    content = read_bytes(path, _MOST_CONFIG_BYTES)
    try:
        _check_size(content)
        values = yaml.load(content, Loader=_YAML_LOADER)  # noqa: S506  # a safe one
        settings = RunSettings.model_validate(values)
        return ConfigFile(content.decode("utf-8", "replace"), values, settings)
    except ValidationError as error:
        raise UnreadableFile(f"{path.name}: {first_reason(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 13-45
        raise UnreadableFile(f"{path.name}: not YAML ({str(error).splitlines()[0]})") from error


def _check_size(content: bytes) -> None:
    """Raise ValueError for YAML that is nested too deeply, or unfolds into too many values.

    The loader's recursion in C would end the process, and who walks over the values would not end.
    """
    if b"&" not in content and sum(map(content.count, _NESTING)) <= _DEEPEST_CONFIG:
        return
    sizes: dict[str | None, int] = {}
    open_now: list[tuple[str | None, int]] = [(None, 0)]  # anchors, and values so far
    for event in yaml.parse(content, Loader=_YAML_LOADER):
        match event:
            case yaml.CollectionStartEvent():
                open_now.append((event.anchor, 0))
                if len(open_now) > _DEEPEST_CONFIG:
                    raise ValueError(f"it is nested more than {_DEEPEST_CONFIG} deep")
                continue
            case yaml.CollectionEndEvent():
                anchor, values = open_now.pop()
                sizes[anchor] = values = values + 1
            case yaml.AliasEvent() if event.anchor in sizes:
                values = sizes[event.anchor]
            case yaml.AliasEvent():
                raise ValueError("a part of it contains itself")
            case yaml.ScalarEvent():
                sizes[event.anchor] = values = 1
            case _:
                continue
        anchor, before = open_now[-1]
        open_now[-1] = (anchor, before + values)
        if before + values > _MOST_VALUES:
            raise ValueError(f"it unfolds into more than {_MOST_VALUES:,} values")


class ResultRow(Record):
    """One figure with its settings, which are all further keys."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=True)

    name: str
    value: float | None = None
    unit: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the measurement."""
        extra = self.model_extra or {}
        return {k: v for k, v in extra.items() if k not in _NOT_SETTINGS and isinstance(v, _PLAIN)}


class ResultContent(Record):
    """A result file as a benchmark writes it."""

    device: str | None = None
    commit: str | None = None
    command: str | None = None
    rows: tuple[ResultRow, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Result:
    """A result file; `content` is None where it could not be read, for the reason `problem`."""

    name: str
    content: ResultContent | None
    problem: str = ""


def read_results(folder: Path) -> list[Result]:
    """All result files of a folder; empty if the folder does not exist."""
    results = []
    # The user has named this folder, which may be a link.
    for path in sorted(Path(os.path.realpath(folder)).glob("*.json")):
        try:
            results.append(Result(path.stem, read_json(path, ResultContent)))
        except UnreadableFile as error:
            results.append(Result(path.stem, None, str(error)))
    return results
