from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from src.report.files import (
    AbsentFile,
    RunRecord,
    RunSettings,
    UnreadableFile,
    read_bytes,
    read_config,
    read_json,
    read_results,
)
from tests.conftest import ROOT

RECORD = {"schema": 1, "run_id": "a", "state": "finished"}


def write(folder: Path, content: str | bytes, name: str = "run.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": 1, "run_id": ', "run.json: Invalid JSON: EOF"),
        ("[]", "run.json: Input should be an object"),
        ("{}", "run.json: schema: Field required"),
        (json.dumps({**RECORD, "schema": 2}), "run.json: schema: Input should be 1"),
        (json.dumps({**RECORD, "state": "odd"}), "run.json: state: Input should be 'running'"),
        (json.dumps({**RECORD, "tokens": -1}), "run.json: tokens: "),
        (json.dumps({**RECORD, "seconds": float("nan")}), "run.json: seconds: "),
        (json.dumps({**RECORD, "started_at": "0001-01-01T00:00:00+14:00"}), "out of range"),
        (b'{"run_id": "\xff"}', "run.json: "),
        ("[" * 100_000, "run.json: "),
    ],
    ids=["cut", "list", "fields", "schema", "state", "negative", "nan", "date", "bytes", "deep"],
)
def test_a_faulty_record_gives_its_reason(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    with pytest.raises(UnreadableFile) as error:
        read_json(write(tmp_path, content), RunRecord)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_absence_is_told_from_damage(tmp_path: Path) -> None:
    with pytest.raises(AbsentFile, match=r"run\.json is missing"):
        read_bytes(tmp_path / "run.json")
    with pytest.raises(AbsentFile, match=r"run\.json is empty"):
        read_bytes(write(tmp_path, " \n"))
    with pytest.raises(UnreadableFile, match=r"cannot be read \(Is a directory\)"):
        read_bytes(tmp_path)


@pytest.mark.parametrize(
    "started", ["2025-11-20T10:37:00", "2025-11-20T10:37:00Z", "2025-11-20T12:37:00+02:00"]
)
def test_times_are_utc(tmp_path: Path, started: str) -> None:
    record = read_json(write(tmp_path, json.dumps({**RECORD, "started_at": started})), RunRecord)
    assert record.started_at == datetime(2025, 11, 20, 10, 37, tzinfo=UTC)


def test_settings_are_read(tmp_path: Path) -> None:
    content = "rope: {type: yarn, target_length: 8192}\nseed: 7\n"
    read = read_config(write(tmp_path, content, "config.yaml"))
    assert (read.settings.rope.type, read.settings.rope.target_length) == ("yarn", 8192)
    assert read.values == {"rope": {"type": "yarn", "target_length": 8192}, "seed": 7}
    assert read.text == content


@pytest.mark.parametrize(
    ("rope", "factor"),
    [
        ({"type": "linear", "target_length": 32768}, 8.0),
        ({"type": "linear", "target_length": 32768, "factor": 4.0}, 4.0),
        ({"type": "linear"}, None),
    ],
    ids=["follows", "given", "unknown"],
)
def test_the_factor_follows_from_the_lengths(rope: dict[str, Any], factor: float | None) -> None:
    config = {"rope": rope, "model": {"name": "m", "native_window": 4096}}
    assert RunSettings.model_validate(config).factor == factor


@pytest.mark.parametrize(
    "content",
    [
        "a: [",
        "- 1",
        "# nothing\n",
        "rope: linear",
        "day: 2020-13-45",
        b"\xff\xfe\xfa",
        "[" * 20_000,
    ],
    ids=["syntax", "list", "comment", "rope", "date", "bytes", "deep"],
)
def test_faulty_settings_give_a_reason(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(UnreadableFile, match=r"^config\.yaml"):
        read_config(write(tmp_path, content, "config.yaml"))


def write_result(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    content = {"device": "H100", "commit": "abc", "command": "python -m x", "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_repositorys_results_are_read() -> None:
    results = read_results(ROOT / "benchmarks" / "results")
    assert [result.problem for result in results] == [""] * len(results)


def test_a_faulty_result_is_told_and_the_others_stay(tmp_path: Path) -> None:
    write_result(tmp_path, "good", [{"name": "n", "value": 1.0}])
    (tmp_path / "bad.json").write_text("{")
    bad, good = read_results(tmp_path)
    assert bad.content is None
    assert bad.problem.startswith("bad.json: Invalid JSON")
    assert good.content is not None
    assert read_results(tmp_path / "none") == []
