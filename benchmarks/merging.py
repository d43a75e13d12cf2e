"""Result files that several runs fill: a new row takes the place of an earlier one of its kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.run_folder import device_name, versions, write_json

# What tells rows apart.
KEY = ("name", "model", "T", "case")
# What a row says of itself where the rows of its file were not measured together.
MEASURED = ("device", "versions", "commit")


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
