"""Rows of several calls in one result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.merging import merge


def row(value: float, **about: Any) -> dict[str, Any]:
    return {"name": "seconds", "value": value, "unit": "s", "model": "m", "T": 4, **about}


def test_a_new_row_takes_the_place_of_its_kind_and_others_say_their_commit(tmp_path: Path) -> None:
    file = tmp_path / "new" / "result.json"
    merge(file, [row(1.0, case="a"), row(2.0, case="b")], commit="1" * 40, command="one")
    merge(file, [row(3.0, case="b")], commit="2" * 40, command="two", script="s")
    result = json.loads(file.read_text())
    assert (result["commit"], result["command"], result["script"]) == ("2" * 40, "two", "s")
    assert result["rows"] == [
        row(1.0, case="a") | {"commit": "1" * 40},
        row(3.0, case="b"),
    ]
    # At the first commit again, its rows need not say so.
    merge(file, [row(4.0, case="b", T=8)], commit="1" * 40, command="three")
    values = {(r["case"], r["T"]): r.get("commit") for r in json.loads(file.read_text())["rows"]}
    assert values == {("a", 4): None, ("b", 4): "2" * 40, ("b", 8): None}
