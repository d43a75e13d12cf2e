"""The short suite on the tiny model and our own sentences: no network, a few items a task."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.evals import measuring, restoration, running, sandbox
from src.evals.cache import ResultCache
from src.evals.restoration import Answers
from src.evals.sandbox import SandboxError
from src.evals.suite import Candidate, Evaluation, EvaluationError, Outcome
from src.evals.suites.inheritance import InheritanceSuite, Repeated
from src.evals.suites.short import ShortSuite
from src.evals.tasks import definitions
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.report.groups import group_runs
from src.report.headline import headline
from src.report.runs import read_runs
from src.results import parse
from src.settings.config import RunConfig
from tests.src.report import synthetic

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "short"
TASKS = tuple(name for name, task in definitions().items() if not task.executes)
CHOICES = tuple(name for name, task in definitions().items() if task.choices)


def suite(*tasks: str, **settings: Any) -> ShortSuite:
    return ShortSuite(
        tasks=tasks or TASKS,
        source="folder",
        folder=str(FIXTURES),
        resamples=100,
        generation_tokens=2048,
        **settings,
    )


@pytest.fixture(scope="module")
def run(compose_run: Callable[..., RunConfig], tiny_overrides: list[str]) -> RunConfig:
    return compose_run(*tiny_overrides)


@pytest.fixture(scope="module")
def export(run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that differs a little from the scaled model."""
    scaled = scaled_config(run.model, run.rope)
    network = load_model(run.model, scaled, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("export")
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def evaluation(run: RunConfig, export: Path, tmp_path: Path) -> Evaluation:
    return Evaluation(
        candidates=(
            Candidate("native", "native", run.model),
            Candidate("scaled", "scaled", run.model, run.rope),
            Candidate("after cpt", "final", run.model, run.rope, export),
            Candidate("cpt", "comparison", run.model, run.rope, export),
        ),
        data=run.data,
        device="cpu",
        dtype="float32",
        cache=ResultCache(tmp_path / "cache"),
    )


def read(result: Outcome) -> Any:
    """The record as it is read from its file."""
    record = result.record
    assert record is not None
    assert parse(json.dumps(record.plain(), allow_nan=False), type(record)) == record
    return record


def record_of(suite: ShortSuite, evaluation: Evaluation) -> Any:
    return read(suite.run(evaluation))


def test_all_tasks_of_all_models(evaluation: Evaluation) -> None:
    result = suite(limit=2).run(evaluation)
    record = read(result)
    assert record.failures == {}
    assert record.limit == 2
    assert record.fused_kernels is False
    roles = {"native": "native", "scaled": "scaled", "after cpt": "final", "cpt": "comparison"}
    assert {m.name: m.role for m in record.models} == roles
    for model in record.models:
        assert set(model.results) == set(TASKS)
        assert set(model.categories) == {t.category for t in definitions().values()}
        for task, found in model.results.items():
            # MMLU's limit is each subject's, of which the fixture has two.
            assert found.n == (4 if task == "mmlu" else 2)
        assert model.lm_eval["arc_easy"]["acc_norm,none"] == pytest.approx(
            model.results["arc_easy"].value
        )
        assert len(model.weights) == 64
    assert [m.name for m in record.models if m.scores.tasks] == ["after cpt", "cpt"]
    # The other run's model is the same one.
    scored = record.final.scores.tasks["humaneval_bpb"]
    assert scored.recovery_vs_best == pytest.approx(100)
    lines = [(item["model"], item["task"]) for item in result.items]
    assert len(lines) == len(set(lines)) == 4 * len(TASKS)


def test_a_task_that_is_named_twice_is_asked_once(evaluation: Evaluation) -> None:
    alone = replace(evaluation, candidates=evaluation.candidates[:1])
    result = suite("piqa", "piqa", limit=1).run(alone)
    assert [item["task"] for item in result.items] == ["piqa"]
    # The model writes nothing.
    assert "fused_kernels" not in read(result).plain()


def test_a_limit_is_marked_wherever_a_number_appears(evaluation: Evaluation) -> None:
    asked = suite("piqa", "gsm8k_bpb", limit=2)
    record = record_of(asked, evaluation)
    for table in asked.tables(record):
        assert "a quick look" in table.title
        assert "2" in table.title
        assert "limit_2" in table.name
    assert all("short@limit2" in key for key in asked.summary(record))
    values, scores, _ = asked.tables(record)
    assert all(cell.endswith(" ± ?") for cell in values.rows[0][2:])
    bits = next(row for row in scores.rows if row[0] == "gsm8k_bpb")
    assert bits[1].endswith("% [?]")
    assert bits[-2:] == ("unknown", "too few items")
    whole = record_of(suite("piqa"), evaluation)
    assert "eval/native/short/piqa" in suite("piqa").summary(whole)


def test_nothing_is_evaluated_twice_and_what_is_done_is_kept(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = measuring.run_task

    def stopping(*args: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return ask(*args, **options)

    monkeypatch.setattr(measuring, "run_task", stopping)
    with pytest.raises(KeyboardInterrupt):
        suite("piqa", "boolq").run(evaluation)
    first = suite("piqa", "boolq").run(evaluation)
    # Four models on two tasks, of which the third and the fourth are the same.
    assert len(asked) == 1 + 6
    again = suite("piqa", "boolq").run(evaluation)
    assert len(asked) == 1 + 6
    kept = [
        [m.model_copy(update={"seconds": {}}) for m in r.record.models]
        for r in (first, again)
        if r.record
    ]
    assert kept[0] == kept[1]
    suite("piqa", limit=1).run(evaluation)
    assert len(asked) > 1 + 6


def test_random_weights_run_every_task_cheap_ones_first(
    evaluation: Evaluation, run: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their tokens are bytes: a text that is longer than the window loses its middle."""
    narrow = Candidate("narrow", "native", replace(run.model, native_window=450))
    record = record_of(
        suite("squad", "lambada", "boolq"), replace(evaluation, candidates=(narrow,))
    )
    assert record.failures == {}
    written = capsys.readouterr()
    assert "random weights: texts longer than the window lose their middle" in written.out
    labels = [line.split(",")[0] for line in written.err.splitlines() if ", narrow (" in line]
    assert labels == ["lambada", "boolq", "squad"]  # squad writes its answers


def test_answers_that_fill_the_window_are_refused_at_the_start(
    evaluation: Evaluation, run: RunConfig
) -> None:
    narrow = Candidate("narrow", "native", replace(run.model, native_window=256))
    asked = replace(evaluation, candidates=(narrow,))
    (problem,) = suite("gsm8k", "piqa").problems(asked)
    assert problem.startswith("eval.short.tasks: 'gsm8k' writes up to 256 tokens")
    record = record_of(suite("gsm8k", "piqa"), asked)
    assert set(record.failures) == {"gsm8k"}


def test_what_fails_is_named_and_the_rest_is_kept(
    evaluation: Evaluation, run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for models whose scores mean something: no text is cut.
    monkeypatch.setattr(measuring, "_only_random", lambda _: False)
    folder = Path(shutil.copytree(FIXTURES, tmp_path / "own"))
    (folder / "sciq.jsonl").unlink()
    (folder / "boolq.jsonl").write_text('{"question": "cut o', encoding="utf-8")
    (folder / "openbookqa.jsonl").write_text('{"question": "no stem"}\n', encoding="utf-8")
    (folder / "lambada.jsonl").write_text("[1, 2]\n", encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    candidates = (
        *evaluation.candidates[:2],
        Candidate("after cpt", "final", run.model, run.rope, empty),
        Candidate("narrow", "comparison", replace(run.model, native_window=450)),
    )
    tasks = ("piqa", "sciq", "boolq", "openbookqa", "lambada", "squad", "humaneval")
    asked = replace(suite(*tasks), folder=str(folder))
    record = record_of(asked, replace(evaluation, candidates=candidates))
    assert set(record.failures) == {
        "sciq",
        "boolq",
        "openbookqa",
        "lambada",
        "humaneval",
        "after cpt",
        "squad, narrow",
    }
    assert "sciq.jsonl is missing" in record.failures["sciq"]
    assert "line 1: malformed JSON" in record.failures["boolq"]
    assert "do not fit the task" in record.failures["openbookqa"]
    assert "line 1: a JSON object is needed, not list; repair" in record.failures["lambada"]
    assert "execute_code=true" in record.failures["humaneval"]
    assert "has no weights" in record.failures["after cpt"]
    assert "does not fit the model's window of 450" in record.failures["squad, narrow"]
    found = {m.name: set(m.results) for m in record.models}
    assert found == {
        "native": {"piqa", "squad"},
        "scaled": {"piqa", "squad"},
        "narrow": {"piqa"},
    }


def test_one_damaged_item_is_one_error_for_its_task(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES, tmp_path / "own"))

    def spoil(task: str, row: int = -1, **fields: Any) -> None:
        lines = (FIXTURES / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        rows[row] |= fields
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")

    spoil("arc_easy", answerKey="Z")
    spoil("openbookqa", choices=None)
    spoil("piqa", sol1=None)
    spoil("boolq", label=7)
    spoil("squad", answers=[])
    spoil("mmlu", 0, split="dev", answer=9)  # an example of the items
    (folder / "sciq.jsonl").write_bytes(b'{"question": "\xff"}\n')
    spoiled = ("arc_easy", "openbookqa", "piqa", "boolq", "squad", "mmlu", "sciq")
    asked = replace(suite(*spoiled, "winogrande"), folder=str(folder))
    two = replace(evaluation, candidates=evaluation.candidates[:2])
    record = record_of(asked, two)
    assert set(record.failures) == set(spoiled)
    for task, message in record.failures.items():
        expected = (
            r"is not UTF-8: .*0xff" if task == "sciq" else r"item \d+ of \w+ does not fit the"
        )
        assert re.search(expected, message), message
    assert [set(m.results) for m in record.models] == [{"winogrande"}] * 2


def test_own_files_may_begin_with_a_mark_and_end_with_an_empty_line(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    text = (FIXTURES / "piqa.jsonl").read_text(encoding="utf-8")
    row = json.loads(text.splitlines()[0])
    row["goal"] += "\u2028 as the next line says"
    text += json.dumps(row, ensure_ascii=False) + "\r\n\n"
    (tmp_path / "piqa.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    asked = replace(suite("piqa"), folder=str(tmp_path))
    one = replace(evaluation, candidates=evaluation.candidates[:1])
    assert record_of(asked, one).models[0].results["piqa"].n == len(text.split("\n")) - 2


def test_a_model_that_has_diverged_is_named(
    evaluation: Evaluation, diverge: Callable[[Candidate], Candidate]
) -> None:
    native, scaled, _, other = evaluation.candidates
    asked = replace(evaluation, candidates=(native, scaled, diverge(other)))
    record = record_of(suite("piqa"), asked)
    assert record.failures.keys() == {"cpt"}
    assert "the model's logits are not finite" in record.failures["cpt"]
    assert [m.name for m in record.models] == ["native", "scaled"]


def test_what_is_wrong_is_known_before_a_run_starts(evaluation: Evaluation) -> None:
    assert suite("piqa").problems(evaluation) == []
    with pytest.raises(ValueError, match=r"tasks=\['piqa', 'winogrand'\]: .* 'winogrande'"):
        suite("piqa", "winogrand")


def test_where_nothing_can_be_evaluated_there_is_one_error(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    nowhere = replace(suite("piqa", "boolq"), folder=str(tmp_path / "nope"))
    with pytest.raises(EvaluationError, match=r"^folder=.*/nope: no such folder; give"):
        nowhere.run(evaluation)
    (line,) = nowhere.problems(evaluation)
    assert line.startswith("eval.short.folder=")
    with pytest.raises(EvaluationError, match=r"piqa.jsonl is missing: put one JSON object"):
        replace(nowhere, folder=str(tmp_path)).run(evaluation)


def test_a_folder_and_its_source_go_together() -> None:
    with pytest.raises(ValueError, match="source=folder and folder=DIR go together"):
        ShortSuite(tasks=("piqa",), source="folder")


@pytest.fixture
def without_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise SandboxError("there is no sandbox here (reasons)")

    monkeypatch.setattr(sandbox, "available", none)


def test_code_without_a_sandbox_is_refused(evaluation: Evaluation, without_sandbox: None) -> None:
    asked = suite("humaneval", "piqa", execute_code=True)
    expected = r"execute_code=true: there is no sandbox here .*set allow_unsandboxed=true"
    (problem,) = asked.problems(evaluation)
    assert re.match(rf"eval\.short\.{expected}", problem)
    with pytest.raises(SandboxError, match=expected):
        asked.run(evaluation)
    with pytest.raises(ValueError, match="allow_unsandboxed=true is for execute_code=true"):
        suite("piqa", allow_unsandboxed=True)


def test_code_is_run_when_asked_for(
    evaluation: Evaluation, without_sandbox: None, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(
        suite("humaneval", "mbpp", execute_code=True, allow_unsandboxed=True),
        replace(evaluation, candidates=evaluation.candidates[:1]),
    )
    assert "humaneval runs generated code in no sandbox" in capsys.readouterr().out
    assert record.failures == {}
    values = [r.value for r in record.models[0].results.values()]
    assert values == [0.0, 0.0], "random weights write no programs"


def test_inheritance_counts_repeated_mistakes(evaluation: Evaluation) -> None:
    asked = InheritanceSuite(tasks=CHOICES, source="folder", folder=str(FIXTURES), resamples=100)
    record = record_of(asked, evaluation)
    assert [m.name for m in record.models] == ["scaled", "after cpt", "cpt"]
    short = suite(*CHOICES).run(evaluation)
    lists = {(i["model"], i["task"]): i for i in short.items}
    missed = same = wrong = 0
    for task in CHOICES:
        native, mine = lists["native", task], lists["after cpt", task]
        for gold, a, b in zip(native["gold"], native["predicted"], mine["predicted"], strict=True):
            missed += a != gold
            same += a != gold and a == b
            wrong += a != gold and b != gold
    found = record.models[1].all
    assert found.native_wrong == missed
    assert found.same == pytest.approx(same / missed)
    assert found.same_of_wrong == pytest.approx(same / wrong)
    low, high = found.interval
    assert low <= found.same <= high
    (table,) = asked.tables(record)
    assert table.columns == ("task", "native model wrong", "scaled", "after cpt", "cpt")
    assert asked.summary(record)["eval/after cpt/inheritance/same"] == found.same


def test_few_mistakes_have_no_interval() -> None:
    asked = InheritanceSuite(tasks=("piqa",), source="folder", folder=str(FIXTURES), resamples=100)

    def repeated(missed: int) -> Repeated:
        given = {"piqa": Answers([0.0] * missed, [1.0] * missed, [1] * missed, [0] * missed)}
        return asked._repeated("piqa", given, given)

    assert repeated(3).same == 1.0
    assert repeated(3).interval is None
    assert repeated(10).interval == (1.0, 1.0)


def test_inheritance_needs_choices_and_a_second_model(evaluation: Evaluation) -> None:
    with pytest.raises(ValueError, match=r"tasks=\['lambada'\]: there are no answers to choose"):
        InheritanceSuite(tasks=("lambada",))
    alone = replace(evaluation, candidates=evaluation.candidates[:1])
    asked = InheritanceSuite(tasks=("piqa",), source="folder", folder=str(FIXTURES))
    with pytest.raises(EvaluationError, match="nothing to compare the native model with"):
        asked.run(alone)


def test_inheritance_needs_a_task_that_both_models_have_answered(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = InheritanceSuite(
        tasks=("piqa", "sciq"), source="folder", folder=str(FIXTURES), resamples=100
    )
    given = Answers([0.0] * 3, [1.0] * 3, [1] * 3, [0] * 3)
    names = [candidate.name for candidate in evaluation.candidates]
    answers = {names[0]: {"piqa": given}, **{name: {"sciq": given} for name in names[1:]}}
    failures = {"piqa, scaled": "a text does not fit"}
    measured = measuring.Measured(answers, failures=failures)
    monkeypatch.setattr("src.evals.suites.inheritance.measure", lambda *_: measured)
    with pytest.raises(EvaluationError, match="the native model with: a text does not fit"):
        asked.run(evaluation)
    answers[names[1]]["piqa"] = given
    record = asked.run(evaluation).record
    assert record is not None
    assert [(model.name, list(model.tasks)) for model in record.models] == [(names[1], ["piqa"])]


def test_a_score_reaches_the_page_as_lm_eval_gave_it(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way that docs/architecture.md walks: lm-eval, record, file, reader, group, table."""
    # Random weights are not above chance.
    monkeypatch.setattr(restoration.Restoration, "discriminates", lambda *_: True)
    result = suite("piqa").run(evaluation)
    by_lm_eval = read(result).final.lm_eval["piqa"]["acc_norm,none"]
    assert by_lm_eval > 0
    folder = tmp_path / "outputs" / "run"
    synthetic.write_run(folder, synthetic.Job(), 1)
    assert result.record is not None
    running._write(folder / "evals", result.record, result.items)
    runs = read_runs(tmp_path / "outputs")
    assert runs[0].problems == ()
    assert runs[0].short is not None
    assert runs[0].short.final is not None
    assert runs[0].short.final.role == "final"
    table = headline(group_runs(runs))
    place = [column.title for column in table.columns].index("short average")
    (cell,) = {row.cells[place].text for row in table.rows if row.cells[0].text == "LinearARD"}
    assert cell == f"{100 * by_lm_eval:.1f}"
