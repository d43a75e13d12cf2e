"""What has been timed is not timed again, unless it was another code or device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import merging, short_suite
from src.results import ShortResults, TaskModel, TaskResult


def record(failures: dict[str, str] | None = None, limit: int | None = None, **model: Any) -> Any:
    models = (TaskModel(name="native", role="native", **model),)
    return ShortResults(models=models, failures=failures or {}, limit=limit)


def written(**model: Any) -> str:
    return json.dumps(record(**model).plain())


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that would have been run; a quarter of the tasks is cached at first."""
    commands: list[tuple[str, ...]] = []

    def run(*arguments: str) -> int:
        commands.append(arguments)
        out = Path(next(a for a in arguments if a.startswith("out="))[4:])
        out.mkdir(parents=True, exist_ok=True)
        seconds = {"sciq": 1.5} | ({"piqa": 2.5} if "cache=false" in arguments else {})
        results = {name: TaskResult(value=0.5) for name in ("sciq", "piqa")}
        (out / "short.json").write_text(written(results=results, seconds=seconds))
        return 2

    monkeypatch.setattr(short_suite, "run", run)
    return commands


def test_half_cached_tasks_are_timed_anew(evaluated: list[tuple[str, ...]], tmp_path: Path) -> None:
    rows = short_suite.timed(tmp_path, "tiny", [], [])
    assert ["cache=false" in command for command in evaluated] == [False, True]
    assert rows[0]["name"] == "suite_seconds"
    assert rows[0]["tasks"] == 2
    assert {row["task"]: row["value"] for row in rows[1:]} == {"sciq": 1.5, "piqa": 2.5}
    assert short_suite.timed(tmp_path, "tiny", [], [*rows, {"name": "value"}]) == rows
    assert len(evaluated) == 2, "known times stay"


@pytest.mark.parametrize(
    ("model", "settings"),
    [pytest.param("tiny", ["limit=2"], id="limit"), pytest.param("other", [], id="model")],
)
def test_times_of_a_quick_look_or_another_model_are_not_taken(
    evaluated: list[tuple[str, ...]], tmp_path: Path, model: str, settings: list[str]
) -> None:
    known = short_suite.timed(tmp_path, model, settings, [])
    asked = len(evaluated)
    short_suite.timed(tmp_path, "tiny", [], known)
    assert len(evaluated) > asked


def test_times_of_other_code_or_devices_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "git_state", lambda root: {"git_commit": None})
    out = tmp_path / "short.json"
    assert merging.measured_before(out, "a") == []
    rows: list[dict[str, Any]] = [{"name": "suite_seconds", "value": 1.0, "unit": "s"}]
    short_suite.write(out, rows, "a")
    assert merging.measured_before(out, "a") == rows
    assert merging.measured_before(out, "b") == []
    short_suite.write(out, rows, None)
    assert merging.measured_before(out, None) == [], "code without a commit may be any"
    short_suite.write(out, rows, "a")
    monkeypatch.setattr(merging, "device_name", lambda: "another")
    assert merging.measured_before(out, "a") == []


def test_failed_tasks_end_the_script_after_all_is_written() -> None:
    short_suite.check(record(), record())
    with pytest.raises(SystemExit, match="mmlu: too long"):
        short_suite.check(record(), record(failures={"mmlu": "too long"}))


def test_an_evaluation_that_writes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "short.json"
    stale.write_text("{}")
    monkeypatch.setattr(short_suite, "run", lambda *arguments: 2)
    with pytest.raises(SystemExit, match=r"short\.json was not written"):
        short_suite.scored(tmp_path, ShortResults, "eval=short")
    assert stale.read_text() == "{}", "what has been earned stays"


def test_a_quick_look_beside_full_results_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.json").write_text(written())

    def run(*arguments: str) -> int:
        (tmp_path / "short.limit_2.json").write_text(written(limit=2))
        return 0

    monkeypatch.setattr(short_suite, "run", run)
    found, _ = short_suite.scored(tmp_path, ShortResults, "eval=short", "limit=2")
    assert found.limit == 2


def test_a_task_that_one_model_could_not_answer_has_a_dash() -> None:
    def value(task: str, model: str) -> dict[str, Any]:
        about = {"stderr": 0.1, "n": 20, "higher_is_better": True, "limit": None}
        return {"name": "value", "task": task, "value": 0.5, "model": model, **about}

    rows = [value("sciq", "native"), value("sciq", "scaled"), value("mmlu", "scaled")]
    lines = short_suite.table({"device": "x", "commit": "a" * 40, "rows": rows}).splitlines()
    assert lines[-2:] == [
        "| sciq | 20 | 50.0 ± 10.0 | 50.0 ± 10.0 | - | - |",
        "| mmlu | 20 | - | 50.0 ± 10.0 | - | - |",
    ]


def test_what_too_few_items_cannot_tell_is_unknown() -> None:
    about = {"task": "sciq", "model": "native", "limit": 2}
    value = {"name": "value", "value": 0.5, "stderr": None, "n": 2, "higher_is_better": True}
    score = {"name": "recovery", "value": 90.0, "interval": None, "discriminating": False}
    lines = short_suite.table(
        {"device": "x", "commit": "a" * 40, "rows": [value | about, score | about]}
    ).splitlines()
    assert "| sciq | 2 | 50.0 ± ? | 90.0% [?] | - |" in lines
    assert "?: unknown, of fewer than 10 items." in lines
