"""Records of results: written and read again, or refused."""

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
    PerplexityResults,
    ResultsError,
    ShortResults,
    TaskModel,
    long_average,
)
from tests.src.report import synthetic
from tests.src.report.synthetic import Job


def content_of(suite: str) -> dict[str, Any]:
    """A file's content."""
    return synthetic.evaluation(suite, Job(), random.Random(0))


def read(folder: Path, content: Any, kind: Any = ShortResults, name: str = "short") -> Any:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"{name}.json").write_text(text)
    return results.read(folder, kind)


@pytest.mark.parametrize("kind", [ShortResults, PerplexityResults, DriftResults])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, kind: Any) -> None:
    record = read(tmp_path, content_of(kind.suite), kind, kind.suite)
    assert record.plain()["schema"] == 2
    assert read(tmp_path, record.plain(), kind, kind.suite) == record


def test_an_earlier_stages_model_never_stands_for_a_last_one_that_could_not_be_evaluated(
    tmp_path: Path,
) -> None:
    content = content_of("short")
    for roles, expected in (
        (("stage", "final"), "final"),
        (("final",), "final"),
        (("stage",), None),
        ((), None),
    ):
        trained = next(m for m in content["models"] if m["role"] == "final")
        others = [m for m in content["models"] if m["role"] in ("native", "scaled")]
        models = [*others, *({**trained, "role": role} for role in roles)]
        final = read(tmp_path, {**content, "models": models}).final
        assert (final and final.role) == expected


def test_what_was_not_evaluated_is_none(tmp_path: Path) -> None:
    assert results.read(tmp_path, ShortResults) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"schema": 1},
            r"short\.json: schema=1 is unknown; allowed: 2; evaluate again .* eval=short",
        ),
        ({"schema": 3}, "schema=3 is unknown"),
        ({"schema": None}, "schema=None is unknown"),
        ({"suite": "medium"}, "suite='medium'; allowed: short; evaluate again"),
        ({"models": []}, r"short\.json: models: .*; evaluate again with .* eval=short"),
        ({"models": None}, r"short\.json: models: "),
        ({"models": [{"name": "a"}]}, r"models\.0\.role: Field required"),
        ({"limit": -1}, r"short\.json: limit"),
        (
            {"models": [{"name": "a", "role": "final", "average": {"value": float("nan")}}]},
            "finite number",
        ),
    ],
    ids=["earlier", "later", "no-schema", "suite", "models", "null", "no-role", "limit", "nan"],
)
def test_faults_are_told_with_what_to_do(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ResultsError, match=reason) as error:
        read(tmp_path, {**content_of("short"), **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"sch', "not JSON"), (" ", "short.json is empty"), ("[" * 100_000, "not JSON")],
    ids=["cut", "empty", "deep"],
)
def test_damaged_files_are_told(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ResultsError, match=reason):
        read(tmp_path, text)


def test_a_half_that_cannot_be_read_is_evaluated_again(tmp_path: Path) -> None:
    file = tmp_path / "short.test.json"
    for text in ("", "{"):
        file.write_text(text)
        with pytest.raises(ResultsError, match=r"short\.test\.json.* eval=short split=test$"):
            results.read(tmp_path, ShortResults, split="test")


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
