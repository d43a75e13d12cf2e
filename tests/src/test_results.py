"""Records of results: written and read again, and files of schema 1 read or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from src import results
from src.results import (
    DriftResults,
    Mean,
    NeedleDepthResults,
    PapersResults,
    PerplexityResults,
    ResultsError,
    RulerResults,
    ShortResults,
    TaskModel,
    long_average,
)
from tests.src.report import synthetic
from tests.src.report.synthetic import Job


def old(suite: str) -> dict[str, Any]:
    """A file of schema 1."""
    return getattr(synthetic, f"_{suite}")(Job(), random.Random(0))


def read(folder: Path, content: Any, kind: Any = ShortResults, name: str = "short") -> Any:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"{name}.json").write_text(text)
    return results.read(folder, kind)


@pytest.mark.parametrize("kind", [ShortResults, PerplexityResults, DriftResults])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, kind: Any) -> None:
    record = read(tmp_path, old(kind.suite), kind, kind.suite)
    assert record.plain()["schema"] == 2
    assert read(tmp_path, record.plain(), kind, kind.suite) == record


def test_an_earlier_stages_model_is_the_final_one_until_the_last_stage_has_ended(
    tmp_path: Path,
) -> None:
    content = read(tmp_path, old("short")).plain()
    for roles, expected in (
        (("stage", "final"), "final"),
        (("final",), "final"),
        (("stage",), "stage"),
    ):
        trained = next(m for m in content["models"] if m["role"] == "final")
        others = [m for m in content["models"] if m["role"] in ("native", "scaled")]
        models = [*others, *({**trained, "role": role} for role in roles)]
        final = read(tmp_path, {**content, "models": models}).final
        assert final is not None
        assert final.role == expected


def test_schema_1_gets_roles_and_scores_at_their_models(tmp_path: Path) -> None:
    content = old("short")
    names = ("after ard", "cpt_long", "native + BM25")
    content["models"] += [{**content["models"][0], "name": name} for name in names]
    content["models"].insert(2, content["models"].pop(3))  # ard comes before cpt
    record = read(tmp_path, content)
    assert {model.name: model.role for model in record.models} == {
        "native": "native",
        "scaled": "scaled",
        "after ard": "stage",
        "after cpt": "final",
        "cpt_long": "comparison",
        "native + BM25": "retrieval",
    }
    assert record.final.name == "after cpt"
    assert record.final.scores.average.recovery == pytest.approx(
        content["scores_by_model"]["after cpt"]["average"]["recovery"]
    )
    assert record.native.results["lambada"].value == 0.738


def test_a_model_by_name_alone_has_no_trained_one(tmp_path: Path) -> None:
    content = old("short")
    content["models"] = content["models"][:2]
    assert read(tmp_path, content).final is None


def test_the_oldest_perplexities_have_the_last_models_scores_alone(tmp_path: Path) -> None:
    content = old("perplexity")
    content["models"][-1]["name"] = "restored"
    del content["scores_by_model"]
    content["models"].insert(2, content["models"][-1] | {"name": "after ard"})
    record = read(tmp_path, content, PerplexityResults, "perplexity")
    assert record.final.scores[512].gap_closed == content["scores"]["512"]["gap_closed"]
    assert [model.name for model in record.students] == ["after ard", "restored"]
    assert not record.students[0].scores
    assert record.native.perplexity[512] == content["models"][0]["perplexity"]["512"]


def test_a_long_file_of_schema_1_becomes_the_suites_that_it_held(tmp_path: Path) -> None:
    content = old("long")
    content["models"][0]["results"] = {
        "ruler_fwe_4096": {"value": 0.5, "length": 4096},
        "qasper_yesno": {"value": 0.7, "truncated": 3},
    }
    ruler = read(tmp_path, content, RulerResults, "long")
    assert ruler.native.results["ruler_fwe_4096"].length == 4096
    assert "qasper_yesno" not in ruler.native.results
    assert ruler.native.by_length[4096].stderr == 0.012
    papers = results.read(tmp_path, PapersResults)
    assert papers is not None
    assert papers.models[0].results["qasper_yesno"].truncated == 3
    needles = results.read(tmp_path, NeedleDepthResults)
    assert needles is not None
    assert needles.final is not None
    assert needles.final.cells[0].length == 4096
    # A file of the suite's own is newer.
    newer = RulerResults(models=(TaskModel(name="native", role="native"),))
    assert read(tmp_path, newer.plain(), RulerResults, "ruler") == newer


def test_what_was_not_evaluated_is_none(tmp_path: Path) -> None:
    assert results.read(tmp_path, ShortResults) is None
    content = old("long") | {"needle_depth": {}}
    assert read(tmp_path, content, NeedleDepthResults, "long") is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 3}, r"short\.json: schema=3 is unknown; allowed: 1, 2; evaluate again"),
        ({"schema": None}, "schema=None is unknown"),
        ({"suite": "medium"}, "suite='medium'; allowed: short"),
        ({"models": []}, r"short\.json: models: .*; evaluate again with .* eval=short"),
        ({"models": None}, "not of schema 1"),
        ({"limit": -1}, r"short\.json: limit"),
        ({"models": [{"name": "a", "average": {"value": float("nan")}}]}, "finite number"),
    ],
    ids=["schema", "no-schema", "suite", "models", "null", "limit", "nan"],
)
def test_faults_are_told_with_what_to_do(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ResultsError, match=reason) as error:
        read(tmp_path, {**old("short"), **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"sch', "not JSON"), (" ", "short.json is empty"), ("[" * 100_000, "not JSON")],
    ids=["cut", "empty", "deep"],
)
def test_damaged_files_are_told(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ResultsError, match=reason):
        read(tmp_path, text)


def test_the_long_average_is_over_the_tasks_of_all_suites() -> None:
    ruler = TaskModel(
        name="m", role="final", average=Mean(value=0.2, stderr=0.03, tasks=("a", "b", "c"))
    )
    papers = TaskModel(name="m", role="final", average=Mean(value=0.6, stderr=0.12, tasks=("q",)))
    mean = long_average(ruler, papers)
    assert mean is not None
    assert mean.value == pytest.approx(0.3)
    # Each task has variance 27e-4 in the one suite and 144e-4 in the other.
    assert mean.stderr == pytest.approx((3 * 27e-4 + 144e-4) ** 0.5 / 4)
    assert long_average(ruler, None) == ruler.average
    assert long_average(None, TaskModel(name="m", role="final")) is None
