from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from src.report.groups import group_runs
from src.report.labels import flat, run_labels, weights_label
from src.report.runs import read_runs
from tests.src.report import synthetic
from tests.src.report.synthetic import Job

MakeRun = Callable[..., Path]


def labels_of(outputs: Path, *jobs: Job) -> dict[str, str]:
    for number, job in enumerate(jobs):
        synthetic.write_run(outputs / f"run-{number}", job, number)
    runs = read_runs(outputs)
    return dict(sorted(zip((run.name for run in runs), run_labels(runs), strict=True)))


def test_runs_are_labelled_by_what_differs(outputs: Path) -> None:
    rope = Job(rope="yarn"), Job(rope="yarn", method="cpt_long"), Job(seed=1)
    assert list(labels_of(outputs, *rope).values()) == [
        "LinearARD, YaRN x8, seed 0",
        "Long-CPT, YaRN x8, seed 0",
        "LinearARD, linear x8, seed 1",
    ]


def test_an_unusual_setting_is_named(outputs: Path) -> None:
    labels = labels_of(outputs, Job(), Job(seed=1), Job(lr=1e-3, sweep="learning_rate"))
    assert labels["run-2"] == "ard.lr=0.001, cpt.lr=0.001, seed 0"


def test_runs_that_differ_in_nothing_get_their_folder(outputs: Path, make_run: MakeRun) -> None:
    assert list(labels_of(outputs, Job(), Job()).values()) == ["run-0", "run-1"]


def test_what_does_not_train_makes_no_difference(outputs: Path) -> None:
    labels_of(outputs, Job(), Job(seed=1))
    file = outputs / "run-1" / "config.yaml"
    file.write_text(f"{file.read_text()}profile: true\n")
    runs = read_runs(outputs)
    assert [run.config.values.get("profile") for run in runs] == [True, None]
    assert set(run_labels(runs)) == {"seed 0", "seed 1"}
    assert [group.seeds for group in group_runs(runs)] == [2]


def test_random_weights_are_named(outputs: Path) -> None:
    labels = labels_of(outputs, Job(), Job(model="tiny"))
    assert labels["run-1"] == "tiny (random weights)"


def test_flat_settings() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": 1, "a.d": [], "e": {}}


@pytest.mark.parametrize(
    ("weights", "label"),
    [
        ({"qq": 1.0, "kk": 1.0, "vv": 1.0}, "Q+K+V"),
        ({"qq": 2, "kk": 1, "vv": 0}, "2Q+K"),
        ({"qk": 1.0, "vv": 0.5}, "0.5V+QKᵀ"),
        ({}, None),
    ],
)
def test_weights_label(weights: dict[str, float], label: str | None) -> None:
    term = {"type": "relation", "weights": weights}
    assert weights_label(flat({"objective": {"terms": {"relation": term}}})) == label
    assert weights_label({"objective.terms.lm.type": "language_modeling"}) is None
