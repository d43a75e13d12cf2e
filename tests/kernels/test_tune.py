"""The search for launch parameters: what it tries, what it refuses, what it writes."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels import bench, tune
from kernels.relation_kl import launch
from kernels.relation_kl.launch import ShapeClass

SHAPES = [
    ShapeClass(*facts)
    for facts in itertools.product(launch.KERNELS, launch.HEAD_SIZES, launch.ELEMENT_BYTES)
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.key)
def test_candidates_begin_with_the_present_parameters(shape) -> None:
    device = torch.device("cpu")
    tried = tune.candidates(shape, device)
    assert tried[0] == launch.lookup(shape, device)
    assert 4 < len(tried) == len(set(tried)) < 30


def test_a_candidate_that_cannot_be_compiled_is_left_out_with_its_reason(
    monkeypatch, capsys
) -> None:
    def fails() -> None:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(tune, "_work", lambda *_: fails)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    pair = (SHAPES[0], launch.lookup(SHAPES[0], torch.device("cpu")))
    assert not tune._runs(pair)
    assert "PassManager" in capsys.readouterr().err

    def lost() -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(RuntimeError, match="illegal"):
        tune._runs(pair)


@pytest.mark.parametrize(("wrong", "usable"), [(0.0, True), (1e-3, True), (0.1, False)])
def test_a_candidate_that_computes_something_else_is_left_out(
    monkeypatch, capsys, wrong, usable
) -> None:
    results = iter([torch.ones(3), torch.ones(3) + wrong])
    monkeypatch.setattr(tune, "_work", lambda *_: lambda: next(results))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    shape = ShapeClass("self_forward", 64, 2)
    assert tune._runs((shape, launch.lookup(shape, torch.device("cpu")))) is usable
    assert ("self_forward/d64/2-byte" in capsys.readouterr().err) is not usable


@pytest.fixture
def table_file(monkeypatch, tmp_path):
    """The table to be written, of a device whose search is faked."""
    file = tmp_path / "launch_table.json"
    file.write_text(launch.TABLE_FILE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(launch, "TABLE_FILE", file)
    monkeypatch.setattr(launch, "device_class", lambda device: "sm00")
    monkeypatch.setattr(tune, "_pool", lambda: ThreadPoolExecutor(2))
    monkeypatch.setattr(tune, "_work", lambda *_: lambda: torch.zeros(()))
    return file


def test_the_fastest_that_runs_is_written(monkeypatch, table_file, capsys) -> None:
    """Milliseconds are here the number of scores in a tile: the smallest that can run wins."""
    monkeypatch.setattr(tune, "_runs", lambda pair: pair[1].block_m > 32)

    def milliseconds(run) -> float:
        (chosen,) = launch._overrides.values()
        return chosen.block_m * chosen.block_n + chosen.num_warps + chosen.num_stages

    assert tune.tune([64], milliseconds) == 0
    table = json.loads(table_file.read_text(encoding="utf-8"))
    best = {2: [64, 32, 4, 2], 4: [64, 16, 4, 1]}
    assert table["sm00"] == {
        ShapeClass(kernel, 64, size).key: best[size] for size in (2, 4) for kernel in launch.KERNELS
    }
    printed = capsys.readouterr()
    assert "[10/10] attention_backward_keys/d64/4-byte: 24 candidates, " in printed.err
    assert " s left" in printed.err
    assert "2054.000 ms (before: 4102.000)" in printed.out


def test_a_search_that_is_broken_off_keeps_what_it_has(monkeypatch, table_file) -> None:
    monkeypatch.setattr(tune, "_runs", lambda pair: True)

    def milliseconds(run) -> float:
        if "self_backward" in launch._overrides:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        tune.tune([128], milliseconds)
    table = json.loads(table_file.read_text(encoding="utf-8"))
    assert [*table["sm00"]] == ["self_forward/d128/2-byte"]


def test_candidates_are_timed_on_the_device_alone(monkeypatch) -> None:
    """Launching a call takes the host longer than the call takes the device."""
    captured: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "tune", lambda sizes, milliseconds: captured.append(milliseconds))
    bench.main(["--tune", "--head-sizes", "64,128"])
    (milliseconds,) = captured
    assert milliseconds.__func__ is bench.Bench.milliseconds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", launch.KERNELS)
def test_the_work_can_be_captured(kernel) -> None:
    bench._captured(tune._work(ShapeClass(kernel, 64, 2), 256))()
    torch.cuda.synchronize()


def test_the_table_is_written_as_it_is_kept() -> None:
    kept = launch.TABLE_FILE.read_text(encoding="utf-8")
    assert tune._text(json.loads(kept)) == kept
