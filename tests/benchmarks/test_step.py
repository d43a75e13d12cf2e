"""The step's benchmark: rows from measurements, and a smoke run of the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import figures, step
from benchmarks.step import CASES, Measurement
from src.planning import plan
from src.planning.devices import ACCELERATORS
from src.training.launch import World

ISSUE_ROWS = {
    "ard_tokens_per_second",
    "ard_time_over_plain",
    "cpt_tokens_per_second",
    "peak_gib",
    "weights_gib_per_rank",
    "throughput_over_one",
    "plan_error_memory",
    "plan_error_time",
    "mfu",
    "relation_share",
    "sequence_parallel_131072",
    "sequence_parallel_262144",
    "sequence_parallel_loss",
}


def measurement(
    case: str,
    *,
    ranks: int = 1,
    seconds: float = 2.0,
    commit: str = "0" * 40,
    losses: tuple[float, ...] = (),
) -> Measurement:
    settings = {
        "case": case,
        "model": "llama2_7b",
        "tokens": CASES[case].length,
        "tokens_per_step": 16384,
        "ranks": ranks,
        "share_base": False,
        "checkpointing": False,
        "keep": "qkv",
        "compile": False,
        "timed_steps": 5,
    }
    return Measurement(
        case=case,
        kind=CASES[case].kind,
        device="a GPU",
        ranks=ranks,
        settings=settings,
        step_seconds=seconds,
        tokens_per_second=16384 / seconds,
        peak_gib=40.0,
        build_peak_gib=30.0,
        weights_gib=26.0 / ranks,
        planned_gib=44.0,
        planned_seconds=1.5,
        flops=1e15,
        matrix_rate=1e15,
        versions={"torch": "2.11.0"},
        commit=commit,
        losses=losses,
    )


def test_every_row_is_made_from_its_measurements() -> None:
    made = step.rows(
        [
            measurement("stored-two", seconds=2.0),
            measurement("sums-stored", seconds=1.8),
            measurement("plain-stored", seconds=1.2),
            measurement("teacher-stored", seconds=0.1),
            measurement("zero3", seconds=4.0),
            measurement("zero3", ranks=2, seconds=2.2),
            measurement("sequence-131072-cpt", ranks=2, losses=(10.0, 9.0)),
            measurement("sequence-16384-cpt", losses=(8.0, 7.0)),
            measurement("sequence-16384-cpt", ranks=2, losses=(8.4, 7.0)),
            measurement("replicated", seconds=16.0),
            measurement("replicated", ranks=8, seconds=2.5),
            measurement("sequence-262144-ard", ranks=8, losses=(3.0,)),
            measurement("sequence-262144-cpt", ranks=8, losses=(9.0,)),
        ]
    )
    assert {row["name"] for row in made} == ISSUE_ROWS
    values = {row["name"]: row["value"] for row in made if row["case"] == "stored-two"}
    assert values["relation_share"] == pytest.approx(0.1)
    assert values["ard_time_over_plain"] == pytest.approx(2.0 / (1.2 + 4 * 0.1))
    assert values["plan_error_memory"] == pytest.approx(10)
    assert values["plan_error_time"] == pytest.approx(25)
    assert values["mfu"] == pytest.approx(0.5)
    scaling = [row for row in made if row["name"] == "throughput_over_one"]
    ratios = {row["case"]: (row["ranks"], pytest.approx(row["value"])) for row in scaling}
    assert ratios == {"zero3": (2, 4.0 / 2.2), "replicated": (8, 16.0 / 2.5)}
    (shared,) = [row for row in made if row["name"] == "sequence_parallel_131072"]
    assert (shared["case"], shared["losses"]) == ("sequence-131072-cpt", (10.0, 9.0))
    longest = [row for row in made if row["case"].startswith("sequence-262144")]
    wanted = {"sequence_parallel_262144", "peak_gib", "plan_error_memory", "plan_error_time"}
    for case in ("ard", "cpt"):
        assert wanted < {row["name"] for row in longest if row["case"].endswith(case)}
    (equal,) = [row for row in made if row["name"] == "sequence_parallel_loss"]
    assert equal["value"] == pytest.approx(1.05)


def test_cases_are_chosen_by_name_or_are_those_of_one_gpu() -> None:
    assert step.chosen("zero3,sequence-16384-ard") == ["zero3", "sequence-16384-ard"]
    assert step.chosen(None) == [name for name in CASES if not name.startswith("sequence-")]
    with pytest.raises(SystemExit, match="speed unknown"):
        step.chosen("zero3,speed")


def test_a_newer_measurement_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    step.write(path, [measurement("stored-two"), measurement("zero3")])
    step.write(path, [*step.load(path), measurement("stored-two", seconds=1.0)])
    assert [(m.case, m.step_seconds) for m in step.load(path)] == [
        ("stored-two", 1.0),
        ("zero3", 2.0),
    ]


def test_models_are_kept_apart(tmp_path: Path) -> None:
    first = measurement("stored-two")
    other = replace(first, settings=first.settings | {"model": "mistral_7b"})
    step.write(tmp_path / "step.json", [first, other])
    assert {m.settings["model"] for m in step.load(tmp_path / "step.json")} == {
        "llama2_7b",
        "mistral_7b",
    }
    two = measurement("stored-two", ranks=2, seconds=1.0)
    rows = step.rows([other, two])
    assert "throughput_over_one" not in {row["name"] for row in rows}


def test_a_ratio_over_another_device_is_missing_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = replace(measurement("stored-two"), device="another GPU")
    target = tmp_path / "step.json"
    step.write(target, [one, measurement("stored-two", ranks=2)])
    held = json.loads(target.read_text())
    assert "throughput_over_one" not in {row["name"] for row in held["rows"]}
    (note,) = held["notes"]
    assert "and one rank on another GPU at" in note
    assert f"note: {note}" in capsys.readouterr().out


def test_a_file_names_versions_and_commit_only_where_all_measurements_share_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "step.json"
    first = measurement("stored-two")
    step.write(path, [first])
    assert json.loads(path.read_text())["commit"] == "0" * 40
    step.write(path, [first, measurement("zero3", commit="1" * 40)])
    result = json.loads(path.read_text())
    assert result["commit"] == "as each measurement says"
    assert result["versions"] == {"torch": "2.11.0"}
    assert [m["commit"] for m in result["measurements"]] == ["0" * 40, "1" * 40]


def test_the_present_plan_is_put_beside_a_measurement() -> None:
    before = replace(measurement("lean-shared"), device="NVIDIA H100 80GB HBM3")
    after = step.replanned(before)
    assert (after.peak_gib, after.step_seconds) == (before.peak_gib, before.step_seconds)
    assert 20 < after.planned_gib < 40
    assert after.planned_seconds is not None
    assert 1 < after.planned_seconds < 10
    with pytest.raises(SystemExit, match="no plan can be made for a GPU"):
        step.replanned(measurement("lean-shared"))


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_accepted(name: str) -> None:
    case = replace(CASES[name])
    settings = step.composed(case, "llama2_7b", quick=False)
    assert settings.model.random_weights
    assert list(settings.recipe.stages) == ["ard"]
    if case.kind != "cpt":
        assert settings.recipe.stages["ard"].parameters.rank == 1024  # type: ignore[union-attr]
    if case.shared:
        ranks = 4 if case.length > 131072 else 2
        shared = step.composed(case, "llama2_7b", quick=False, ranks=ranks)
        planned = plan.make(shared, world_size=ranks, device=ACCELERATORS["h100"])
        assert planned.fits


@pytest.mark.slow
def test_a_quick_run_measures_every_kind(tmp_path: Path) -> None:
    names = ["stored-two", "sums-stored", "plain-stored", "teacher-stored", "lean-shared", "zero3"]
    names += ["sequence-16384-ard", "sequence-16384-cpt"]
    found = [step.measure(name, "llama2_7b", World(), quick=True, commit=None) for name in names]
    path = tmp_path / "step.json"
    step.write(path, found)
    result = json.loads(path.read_text())
    assert {"ard_tokens_per_second", "peak_gib", "ard_time_over_plain", "relation_share"} <= {
        row["name"] for row in result["rows"]
    }
    assert all(row["value"] == row["value"] for row in result["rows"])
    chart, _ = figures.step_picture(result)
    assert len(chart.series) == 2
