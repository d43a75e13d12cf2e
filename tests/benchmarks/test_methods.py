"""The search chooses one stage's rate after the other; runs that were cut off are gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import methods
from benchmarks.methods import CASES, decided
from src.run_folder import RunFolder
from tests.conftest import ROOT, kill_when

TWO = {"ard": (0.1, 0.2, 0.3), "cpt": (1.0, 2.0, 3.0)}


def rows(losses: dict[tuple[float, float], tuple[float | None, float | None]]) -> list[dict]:
    """Of searches of a two-stage case: (rate, rate) -> (loss, loss)."""
    return [
        {
            "name": "search_loss",
            "case": "x",
            "stage": stage,
            "rates": dict(zip(TWO, rates, strict=True)),
            "budget": "1M",
            "value": value,
        }
        for rates, values in losses.items()
        for stage, value in zip(TWO, values, strict=True)
    ]


def test_the_first_stage_is_searched_at_the_seconds_middle_rate() -> None:
    missing, best = decided([], "x", TWO, "1M")
    assert missing == [{"ard": rate, "cpt": 2.0} for rate in TWO["ard"]]
    assert best is None


def test_then_the_second_at_the_firsts_best_one() -> None:
    known = {(0.1, 2.0): (5.0, 9.0), (0.2, 2.0): (4.0, 9.5), (0.3, 2.0): (3.0, 9.9)}
    assert decided(rows(known), "x", TWO, "1M") == (
        [{"ard": 0.3, "cpt": 1.0}, {"ard": 0.3, "cpt": 3.0}],
        None,
    )
    known |= {(0.3, 1.0): (3.0, 9.8), (0.3, 3.0): (3.0, 10.0)}
    assert decided(rows(known), "x", TWO, "1M") == ([], {"ard": 0.3, "cpt": 1.0})


def test_another_budgets_runs_do_not_count(tmp_path: Path) -> None:
    known = rows({(0.1, 2.0): (5.0, 9.0), (0.2, 2.0): (4.0, 9.5), (0.3, 2.0): (3.0, 9.9)})
    assert decided(known, "x", TWO, "2M") == decided([], "x", TWO, "2M")
    out = tmp_path / "methods.json"
    rates = {"cpt": CASES["cpt_long_32k"]["cpt"][0]}
    searched = [
        {"name": "search_loss", "case": "cpt_long_32k", "stage": "cpt", "value": 1.0}
        | {"rates": {"cpt": rate}, "budget": "1M"}
        for rate in CASES["cpt_long_32k"]["cpt"]
    ]
    whole = {"name": "train_seconds", "case": "cpt_long_32k", "rates": rates, "budget": "4.25M"}
    out.write_text(json.dumps({"rows": [*searched, whole]}))

    def ready(*arguments: str) -> list[methods.Run]:
        command = ["--out", str(out), "--cases", "cpt_long_32k", *arguments]
        return list(methods.Bench(methods.parser().parse_args(command))._ready())

    assert ready() == []
    assert ready("--budget", "16M") == [methods.Run("cpt_long_32k", rates, "16M", search=False)]
    assert len(ready("--budget", "16M", "--search-budget", "2M")) == len(searched)


def test_every_row_that_is_kept_names_its_commit_and_budget() -> None:
    kept = json.loads((ROOT / "benchmarks/results/methods.json").read_text())
    assert kept["rows"]
    for row in kept["rows"]:
        assert row["commit"]
        assert "budget" in row or row["case"] in ("native", "scaled")


def test_a_rate_that_diverges_is_not_chosen() -> None:
    known = {(0.1, 2.0): (5.0, 9.0), (0.2, 2.0): (6.0, 9.5), (0.3, 2.0): (None, None)}
    missing, _ = decided(rows(known), "x", TWO, "1M")
    assert {r["ard"] for r in missing} == {0.1}
    nowhere: dict[Any, Any] = dict.fromkeys(known, (None, None))
    with pytest.raises(SystemExit, match="stage ard diverges at every rate"):
        decided(rows(nowhere), "x", TWO, "1M")


def test_the_last_half_of_a_stages_steps_counts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for stage, loss in [("ard", 9.0), ("cpt", 8.0), ("cpt", 7.0), ("cpt", 2.0), ("cpt", 1.0)]:
        folder.log({"step": 1, "stage": stage, "loss/total": loss})
    assert methods.last_half_loss(folder, "cpt") == 1.5
    folder.log({"step": 6, "stage": "cpt", "loss/total": float("nan")})
    assert methods.last_half_loss(folder, "cpt") is None
    assert methods.last_half_loss(folder, "mix") is None


def test_every_stage_of_every_case_is_searched_and_can_be_tried_out() -> None:
    for case, searched in CASES.items():
        assert (ROOT / "conf" / "experiment" / f"{case}.yaml").is_file()
        assert searched.keys() <= methods.QUICK_STAGES.keys()
        assert searched.keys() <= methods.STEPS_BETWEEN_CHECKPOINTS.keys()
        assert all(list(tried) == sorted(tried) for tried in searched.values())


def test_the_table_has_a_line_a_model() -> None:
    def scored(case: str, **about: Any) -> list[dict]:
        return [
            {"name": "perplexity", "value": 12.345, "window": 512, "case": case, **about},
            {"name": "lambada_accuracy", "value": 0.4, "stderr": 0.01, "case": case, **about},
        ]

    rates = {"ard": 1e-3, "cpt": 3e-4}
    result = {
        "budget": "4.25M",
        "rows": [
            {"name": "train_seconds", "value": 9, "case": "linearard_32k", "rates": rates},
            *scored("linearard_32k", rates=rates),
            *scored("native"),
        ],
    }
    assert methods.table(result).splitlines()[2:] == [
        "| native |  | 12.35 | 40.0% ± 1.0% |",
        "| linearard_32k | 0.001, 0.0003 | 12.35 | 40.0% ± 1.0% |",
    ]


def test_runs_are_dealt_out_to_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert methods.visible_gpus() == [None]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert methods.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen: list[str] = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *_, env, **__: seen.append(env["CUDA_VISIBLE_DEVICES"])
    )
    given = methods.parser().parse_args(["--out", str(tmp_path / "x"), "--work", str(tmp_path)])
    bench = methods.Bench(given)
    for rate in (1e-4, 1e-3, 1e-2):
        bench._start(methods.Run("cpt_long_32k", {"cpt": rate}, "1M", search=True))
    assert seen == ["3", "5", "3"]


@pytest.mark.thorough
@pytest.mark.slow
def test_a_killed_call_is_gone_on_with(prose: Path, tmp_path: Path) -> None:
    """Killed while the first search trains: its process ends, and the next call resumes it."""
    out, work = tmp_path / "methods.json", tmp_path / "work"
    texts = [f"data.sources.files.paths=[{prose}]", "data.held_out=[held-*]"]
    command = [
        *(sys.executable, "-m", "benchmarks.methods", "--quick", "--data", "files"),
        *("--cases", "cpt_long_32k", "--out", str(out), "--work", str(work)),
        *("--search-only", "--overrides", *texts, "checkpoint.every_steps=1"),
    ]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    first_rate = CASES["cpt_long_32k"]["cpt"][0]
    checkpoints = work / f"cpt_long_32k-search-{first_rate:g}" / "checkpoints"
    kill_when(first, lambda: bool(list(checkpoints.glob("step-?"))), signal.SIGKILL)
    record = RunFolder(checkpoints.parent).record()
    assert record["state"] == "running", "killed before its end"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resume={checkpoints.parent}" in done.stdout
    result = json.loads(out.read_text())
    assert [row["rates"]["cpt"] for row in result["rows"]] == list(CASES["cpt_long_32k"]["cpt"])
    assert not checkpoints.parent.exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert "src.train" not in again.stdout, "nothing is run twice"
