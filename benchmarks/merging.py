"""Result files: where their rows were measured, and rows of several runs in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.run_folder import device_name, git_state, versions, write_json

ROOT = Path(__file__).resolve().parents[1]

# What tells rows apart.
KEY = ("name", "model", "T", "case")
# What a row says of itself where the rows of its file were not measured together.
MEASURED = ("device", "versions", "commit")


def commit_of(given: str | None) -> str | None:
    """The code's commit: as given, else what the repository says."""
    return given or git_state(ROOT)["git_commit"]


def measured_before(path: Path, commit: str | None) -> list[dict[str, Any]]:
    """Rows of an earlier call with this code on this device, none where there was no such call.

    Code that no commit is known of may be any, so nothing is taken for its own.
    """
    now = commit_of(commit)
    if now is None or not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    same = (before["commit"], before["device"]) == (now, device_name())
    return before["rows"] if same else []


def write(path: Path, rows: Sequence[Mapping[str, Any]], **about: Any) -> None:
    """Write a result file anew: device, versions, further keys, rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"device": device_name(), "versions": versions()}
    write_json(path, {**where, **about, "rows": list(rows)})


def merge(path: Path, rows: Sequence[Mapping[str, Any]], **about: Any) -> None:
    """Put rows into a result file, beside its others.

    Args:
        path: the file; it is made where there is none.
        rows: of one call.
        about: further keys of the file, the commit of the code among them.
    """
    now = {"device": device_name(), "versions": versions(), **about}
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    new = {_key(row): {**row} for row in rows}
    before = [
        {**{name: held[name] for name in MEASURED}, **row}
        for row in held["rows"]
        if _key(row) not in new
    ]
    # A row says only what the file does not say for all.
    told = [
        {k: v for k, v in row.items() if k not in MEASURED or v != now[k]}
        for row in [*before, *new.values()]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**now, "rows": told})


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)
