from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from src.report.files import UnreadableFile, read_json
from src.report.suites import DriftReport, SuiteReport
from tests.src.report import synthetic
from tests.src.report.synthetic import Job


@pytest.fixture
def short() -> dict[str, Any]:
    return synthetic._short(Job(), random.Random(0))


def read(folder: Path, content: dict[str, Any]) -> SuiteReport:
    path = folder / "short.json"
    path.write_text(json.dumps(content))
    return read_json(path, SuiteReport)


def test_a_suite_knows_its_models_and_scores(tmp_path: Path, short: dict[str, Any]) -> None:
    report = read(tmp_path, short)
    assert report.final is not None
    assert report.final.name == "after cpt"
    native = report.model("native")
    assert native is not None
    assert native.results["lambada"].value == 0.738
    assert report.final_scores.average is not None
    assert report.model("other") is None


def test_models_that_stand_beside_it_are_not_the_runs_own(
    tmp_path: Path, short: dict[str, Any]
) -> None:
    short["models"].append({**short["models"][0], "name": "another run"})
    final = read(tmp_path, short).final
    assert final is not None
    assert final.name == "after cpt"


def test_a_model_by_name_alone_has_no_trained_one(tmp_path: Path, short: dict[str, Any]) -> None:
    short["models"] = short["models"][:2]
    report = read(tmp_path, short)
    assert report.final is None
    assert report.final_scores.average is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "short.json: schema"),
        ({"suite": "medium"}, "short.json: suite"),
        ({"models": []}, "short.json: models"),
        ({"limit": -1}, "short.json: limit"),
        ({"models": [{"name": "a", "average": {"value": float("nan")}}]}, "finite number"),
    ],
    ids=["schema", "suite", "models", "limit", "nan"],
)
def test_faults_are_told(
    tmp_path: Path, short: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnreadableFile, match=reason):
        read(tmp_path, {**short, **change})


def test_drift_is_by_relation_and_layer(tmp_path: Path) -> None:
    path = tmp_path / "drift.json"
    path.write_text(json.dumps(synthetic._drift(Job(), random.Random(0))))
    report = read_json(path, DriftReport)
    assert {len(curve) for curve in report.models[0].relation_kl.values()} == {synthetic.LAYERS}
