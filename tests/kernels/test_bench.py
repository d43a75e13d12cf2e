"""The benchmark, on a CPU: it checks first, writes every row, and says what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels import bench


def test_cpu_rows_are_written_with_their_settings(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "ON_CPU", (1, 2, 256, 64))
    out = tmp_path / "kernel.json"
    arguments = ["--out", str(out), "--seconds", "0.01", "--rows", "chunked_speedup_over_dense"]
    assert bench.main(arguments) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"device", "versions", "commit", "command", "rows"} <= result.keys()
    checks = [row for row in result["rows"] if row["name"] == "error_over_dense"]
    assert {row["family"] for row in checks} == set(bench.FAMILIES)
    assert all(row["rms_error"] <= row["allowed"] for row in checks)
    (speed,) = (row for row in result["rows"] if row["name"] == "chunked_speedup_over_dense")
    assert (speed["T"], speed["D"]) == (256, 64)
    assert "chunked_speedup_over_dense" in capsys.readouterr().out


def test_no_time_is_measured_after_a_failed_check(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("WORST_RATIO", "RELATIVE"):
        monkeypatch.setattr(bench, name, -1.0)
    out = tmp_path / "kernel.json"
    assert bench.main(["--out", str(out)]) == 1
    assert "no times are measured" in capsys.readouterr().err
    assert len(json.loads(out.read_text(encoding="utf-8"))["rows"]) == 1


def test_unknown_rows_are_named_with_the_known_ones(tmp_path: Path, capsys) -> None:
    assert bench.main(["--out", str(tmp_path / "k.json"), "--rows", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_a_folder_that_is_no_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="integration"):
        bench._load_reference(tmp_path)


@pytest.mark.parametrize("sizes", ["48,64", "x", "64,", ""])
def test_an_unknown_head_size_is_refused_with_the_known_ones(sizes: str, capsys) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--tune", "--head-sizes", sizes])
    assert f"{sizes}: give some of 16, 32, 64, 128, 256" in capsys.readouterr().err
