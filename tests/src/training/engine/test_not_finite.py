"""Numbers that are not finite never reach the weights, whatever DeepSpeed's optimizer is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from src.run_folder import RunFolder
from src.training.engine.student import Student
from tests.conftest import by_default

Train = Callable[..., Path]


@pytest.fixture
def bad_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four micro-steps a step: NaN in a loss of the second step, in a gradient of the third."""
    loss_of, calls = Student.loss, iter(range(10**6))

    def loss(self: Student, *given: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = loss_of(self, *given)
        call = next(calls)
        if call == 5:
            value = value + math.nan  # its gradient is finite
        if call == 9:
            value.register_hook(lambda gradient: gradient * math.inf)
        return value, metrics

    monkeypatch.setattr(Student, "loss", loss)


@pytest.mark.usefixtures("bad_numbers")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", range(4))
@by_default(lambda stage, dtype: (stage, dtype) == (0, "float32"))
def test_a_step_that_is_not_finite_is_skipped_and_said(
    train_tiny: Train, capsys: pytest.CaptureFixture[str], stage: int, dtype: str
) -> None:
    run = train_tiny(
        *(f"engine.student.zero_stage={stage}", f"engine.dtype={dtype}"),
        *("checkpoint.every_steps=1", "checkpoint.keep=9"),
    )
    steps = [
        load_file(run / "checkpoints" / f"step-{n}" / "rank-0000.safetensors") for n in range(1, 5)
    ]
    for skipped in steps[1:3]:
        assert all(skipped[key].equal(value) for key, value in steps[0].items()), "and the moments"
    updates = [float(state["updates/0/"]) for state in steps]
    assert [each - updates[0] for each in updates] == [0, 0, 0, 1]
    assert all(value.isfinite().all() for value in steps[3].values())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped") for line in lines[:4]] == [None, 1, 1, None]
    assert lines[1]["loss/total"] is None
    assert lines[2]["grad_norm"] is None
    assert lines[1]["documents"], "it says what was read"
    assert "step 2: skipped" in capsys.readouterr().err
    kept = json.loads((run / "replay" / "ard.json").read_text())
    assert kept["step"] == 3
    assert {d for block in kept["blocks"] for d in block["documents"]} == set(lines[2]["documents"])
    assert sum(len(block["ids"]) for block in kept["blocks"]) == 256


def test_weights_that_are_not_finite_are_not_saved(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update that overflows: the gradient was finite."""
    step_of = Student.step

    def step(self: Student, lr: float) -> Tensor | float:
        norm = step_of(self, lr)
        name, parameter = next(iter(self._state._named.items()))
        del name
        with torch.no_grad():
            parameter.view(-1)[0] = math.inf
        return norm

    monkeypatch.setattr(Student, "step", step)
    with pytest.raises(FloatingPointError, match=r"stage ard, step 2: weight of .* is not finite"):
        train_tiny(f"run_dir={tmp_path / 'run'}", "optim.max_skipped=9")
    folder = RunFolder(tmp_path / "run")
    assert folder.record()["state"] == "failed"
    assert not list(folder.checkpoints.glob("*"))
