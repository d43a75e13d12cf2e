from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.report.performance import read_results
from tests.conftest import ROOT


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    content = {"device": "H100", "commit": "abc", "command": "python -m x", "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_repositorys_results_are_read() -> None:
    results = read_results(ROOT / "benchmarks" / "results")
    assert [result.problem for result in results] == [""] * len(results)


def test_a_faulty_result_is_told_and_the_others_stay(tmp_path: Path) -> None:
    write(tmp_path, "good", [{"name": "n", "value": 1.0}])
    (tmp_path / "bad.json").write_text("{")
    bad, good = read_results(tmp_path)
    assert bad.content is None
    assert bad.problem.startswith("bad.json: Invalid JSON")
    assert good.content is not None
    assert read_results(tmp_path / "none") == []
