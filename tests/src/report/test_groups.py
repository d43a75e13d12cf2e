from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.report.groups import (
    RECOVERY,
    Group,
    group_runs,
    headline_window,
    ruler,
)
from src.report.runs import read_runs
from tests.src.report import synthetic
from tests.src.report.synthetic import Job, perplexity_results


def groups_of(outputs: Path, *jobs: Job) -> list[Group]:
    for number, job in enumerate(jobs):
        synthetic.write_run(outputs / f"run-{number}", job, number)
    return group_runs(read_runs(outputs))


def test_seeds_are_one_group_and_other_settings_are_not(outputs: Path) -> None:
    found = groups_of(outputs, *(Job(seed=seed) for seed in range(3)), Job(lr=1e-3))
    assert sorted(group.seeds for group in found) == [1, 3]
    three = next(group for group in found if group.seeds == 3)
    assert three.estimates[RECOVERY.key].seeds == 3
    assert three.method == "linearard"
    assert (three.rope, three.factor, three.tokens) == ("linear", 8.0, 4_456_448)
    assert ruler(32768).key in three.estimates
    assert three.hours == pytest.approx(4_456_448 / 21_000 * 2 / 3600)


def test_a_seed_that_was_run_twice_counts_once(outputs: Path) -> None:
    (group,) = groups_of(outputs, Job(seed=1), Job(seed=1), Job(seed=2))
    assert group.seeds == 2
    names = [run.name for run in read_runs(outputs)]
    assert [names[index] for index in group.members] == ["run-2", "run-1"]  # the newest of each


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_only_finished_runs_count(outputs: Path, state: str) -> None:
    (group,) = groups_of(outputs, Job(), replace(Job(seed=1), state=state))
    assert group.seeds == 1


def test_a_run_whose_record_is_lost_does_not_count(outputs: Path) -> None:
    groups_of(outputs, Job(), Job(seed=1))
    (outputs / "run-0" / "run.json").write_text("{")
    (group,) = group_runs(read_runs(outputs))
    assert group.seeds == 1


def test_sweeps_and_experiments_stay_apart(outputs: Path) -> None:
    found = groups_of(outputs, Job(sweep="methods"), Job(sweep="seeds"), Job(experiment="other"))
    assert len(found) == 3
    assert sum(group.is_main for group in found) == 1  # at one place one of them is shown


def test_the_usual_settings_stand_for_a_method_whatever_the_result(outputs: Path) -> None:
    best = Job(lr=2e-4, sweep="learning_rate")
    found = groups_of(outputs, Job(seed=0), Job(seed=0, sweep="methods"), best)
    (odd,) = [group for group in found if group.variant]
    assert odd.variant == "ard.lr=0.0002, cpt.lr=0.0002"
    assert not odd.is_main


def test_weights_name_a_variant(outputs: Path) -> None:
    found = groups_of(outputs, Job(), Job(sweep="a"), Job(weights=(2.0, 0.0, 1.0)))
    assert sorted(group.variant for group in found) == ["", "", "2Q+V"]


def test_a_merged_run_is_of_a_method_of_its_own(outputs: Path) -> None:
    groups_of(outputs, Job("cpt_long"), Job("cpt_long", seed=1))
    config = outputs / "run-1" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["recipe"]["stages"]["merge"] = {"merge": "linear", "weight": 0.5}
    config.write_text(yaml.safe_dump(values))
    found = group_runs(read_runs(outputs))
    assert [(group.method_name, group.is_main) for group in found] == [
        ("Long-CPT", True),
        ("Long-CPT, merged", True),
    ]


def test_models_of_one_name_stay_apart_and_are_told_by_their_weights(outputs: Path) -> None:
    found = groups_of(outputs, Job(model="own@1a2b3c4d"), Job(seed=1, model="own@1a2b3c4d"))
    assert [(group.model_name, group.seeds) for group in found] == [("own", 2)]
    synthetic.write_run(outputs / "other", Job(model="own@00000000"), 9)
    names = [(group.model_name, group.seeds) for group in group_runs(read_runs(outputs))]
    assert names == [("own (weights 00000000)", 1), ("own (weights 1a2b3c4d)", 2)]


def test_what_follows_the_target_is_no_variant(outputs: Path) -> None:
    found = groups_of(outputs, Job(factor=8), Job(factor=8, sweep="a"), Job(factor=4))
    assert [group.variant for group in found] == ["", "", ""]
    assert sum(group.is_main for group in found) == 2


def test_baselines_and_needles_come_along(outputs: Path) -> None:
    (group,) = groups_of(outputs, Job())
    assert group.baselines["native"]["short"].value == pytest.approx(74.3)
    assert group.baselines["scaled"][ruler(4096).key].value == pytest.approx(41.0)
    assert set(group.needles) >= {(4096, 0.0), (32768, 100.0)}


def test_the_limit_of_a_quick_look_is_kept(outputs: Path) -> None:
    (group,) = groups_of(outputs, Job(model="smollm2_135m", factor=4))
    assert group.limit == 200


def test_half_known_intervals_are_unknown(outputs: Path) -> None:
    groups_of(outputs, Job())
    file = outputs / "run-0" / "evals" / "short.json"
    content = json.loads(file.read_text())
    content["models"][2]["scores"]["average"]["interval"]["recovery"] = [None, 3.0]
    file.write_text(json.dumps(content))
    (group,) = group_runs(read_runs(outputs))
    assert group.estimates[RECOVERY.key].half is None


def test_the_runs_own_model_is_taken_and_not_one_beside_it(outputs: Path) -> None:
    groups_of(outputs, Job())
    file = outputs / "run-0" / "evals" / "ruler.json"
    content = json.loads(file.read_text())
    rival = {**content["models"][0], "name": "native + BM25", "role": "retrieval"}
    content["models"].append(rival)
    file.write_text(json.dumps(content))
    (group,) = group_runs(read_runs(outputs))
    assert group.estimates[ruler(4096).key].value != pytest.approx(91.0)


@pytest.mark.parametrize(
    ("headline", "wanted", "window"),
    [(512, None, 512), (None, None, 2048), (512, 128, 128), (512, 64, None), (64, None, None)],
    ids=["evaluation's", "largest", "asked", "asked-but-absent", "headline-but-absent"],
)
def test_headline_window(
    evaluation: dict[str, Any], headline: int | None, wanted: int | None, window: int | None
) -> None:
    report = perplexity_results({**evaluation, "headline": headline})
    assert headline_window(report, wanted) == window


def test_figures_of_other_items_are_not_averaged(outputs: Path) -> None:
    """Seed 0 was asked the half to report, seed 1 the half to choose settings by."""
    groups_of(outputs, Job(seed=0), Job(seed=1))
    for run, split in (("run-0", "test"), ("run-1", "validation")):
        file = outputs / run / "evals" / "short.json"
        content = json.loads(file.read_text()) | {"split": split}
        file.with_name(f"short.{split}.json").write_text(json.dumps(content))
        file.unlink()
    runs = read_runs(outputs)
    assert [run.short and run.short.split for run in runs] == ["validation", "test"]
    (group,) = group_runs(runs)
    assert group.estimates[RECOVERY.key].seeds == 1  # the newest run's
    assert group.estimates[ruler(4096).key].seeds == 2
