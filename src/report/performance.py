"""Result files of benchmarks, `benchmarks/results/NAME.json`, as typed records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from src.report.files import Record, UnreadableFile, read_json

_NOT_SETTINGS = {"name", "value", "unit", "device"}


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
        return {k: v for k, v in extra.items() if k not in _NOT_SETTINGS and _is_plain(v)}


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
    path: Path
    content: ResultContent | None
    problem: str = ""


def read_results(folder: Path) -> list[Result]:
    """All result files of a folder; empty if the folder does not exist."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(Result(path.stem, path, read_json(path, ResultContent)))
        except UnreadableFile as error:
            found.append(Result(path.stem, path, None, str(error)))
    return found


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
