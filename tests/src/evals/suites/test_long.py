"""The long suite on the tiny model and own text: results, failures, cache, ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.data import TextFiles
from src.evals.papers import PaperQuestion
from src.evals.positions import PositionsConfig
from src.evals.retrieval import RetrievalConfig
from src.evals.ruler.loading import MaterialConfig
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.suites.long import DepthConfig, LongSuite, RulerConfig, _gathered
from src.evals.units import PapersUnit, Reader, RulerUnit, Session
from src.models.rope import LinearScaling

NATIVE, SCALED = 1024, 2048  # the windows of the models in conftest.py
TASKS = ("fwe", "qa_squad")


@pytest.fixture(scope="module")
def material_config(tmp_path_factory: pytest.TempPathFactory, material: Any) -> MaterialConfig:
    folder = tmp_path_factory.mktemp("material")
    (folder / "story.txt").write_text(" ".join(material.sentences), encoding="utf-8")
    for file, words in (
        ("adjectivelist.txt", material.adjectives),
        ("nounlist.txt", material.nouns),
        ("verblist.txt", material.verbs),
    ):
        (folder / file).write_text("\n".join(words), encoding="utf-8")
    known = material.questions["squad"]
    articles = [
        {
            "title": f"Towns {i}",
            "paragraphs": [
                {
                    "context": known.documents[n],
                    "qas": [
                        {"question": q.text, "answers": [{"text": t} for t in q.answers]}
                        for q in known.questions
                        if q.document == n
                    ],
                }
                for n in range(4 * i, 4 * i + 4)
            ],
        }
        for i in range(30)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    return MaterialConfig(
        prose=TextFiles("files", (str(folder / "story.txt"),)),
        words=str(folder),
        squad=str(folder / "squad.json"),
    )


@pytest.fixture
def suite(material_config: MaterialConfig) -> LongSuite:
    return LongSuite(
        lengths=(NATIVE, SCALED),
        ruler=RulerConfig(TASKS, 2, material_config),
        retrieval=RetrievalConfig(chunk_tokens=100),
        resamples=50,
    )


def test_everything_is_answered_within_the_windows(
    evaluation: Evaluation, suite: LongSuite
) -> None:
    whole = replace(
        suite,
        depth=DepthConfig((0.0, 100.0), 1),
        positions=PositionsConfig(segments=2, last=64, sliding=128, edges=(1, 16, 256)),
    )
    found = whole.run(evaluation)
    assert not found.failures
    content = json.loads(json.dumps(found.content, allow_nan=False))
    by_name = {model["name"]: model for model in content["models"]}
    assert list(by_name) == ["native", "scaled", "after ard", "native + BM25"]
    short, both = {str(NATIVE)}, {str(NATIVE), str(SCALED)}
    assert set(by_name["native"]["ruler_by_length"]) == short
    assert by_name["native"]["beyond_window"] == [SCALED]
    for name in ("scaled", "after ard", "native + BM25"):
        model = by_name[name]
        assert set(model["ruler_by_length"]) == both
        assert set(model["results"]) == {f"ruler_{t}_{n}" for t in TASKS for n in (NATIVE, SCALED)}
        for result in model["results"].values():
            assert 0 <= result["value"] <= 1
            assert result["score"] == 100 * result["value"]
            assert result["n"] == 2
    assert set(by_name["scaled"]["text"]["last_k"]) == both
    assert set(by_name["native"]["text"]["last_k"]) == short
    assert "text" not in by_name["native + BM25"]
    grid = content["needle_depth"]["scaled"]
    assert [(c["length"], c["depth"], c["n"]) for c in grid] == [
        *((NATIVE, 0, 1), (NATIVE, 100, 1), (SCALED, 0, 1), (SCALED, 100, 1)),
    ]
    assert set(content["scores_by_model"]) == {"after ard", "native + BM25"}
    tables = {table.name: table for table in suite.tables(content)}
    assert set(tables) == {
        *("ruler", f"ruler_{NATIVE}", f"ruler_{SCALED}", "needle_depth", "long_perplexity"),
    }
    assert tables["ruler"].rows[0][2] is None
    for table in tables.values():
        assert all(table.cells(row) for row in table.rows)
    assert all(isinstance(value, float) for value in suite.summary(content).values())
    assert f"eval/scaled/long/ruler/{SCALED}" in suite.summary(content)
    lines = [i for i in found.items if i["model"] == "scaled" and i["task"] == "ruler_fwe_2048"]
    assert [line["item"] for line in lines] == [0, 1]
    assert len(lines[0]["outputs"]) == 3


def test_what_has_been_answered_is_not_asked_again(
    evaluation: Evaluation, suite: LongSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = suite.run(evaluation)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("src.evals.suite.load_model", refuse)
    again = suite.run(evaluation)
    assert again.content == first.content
    assert again.items == first.items


def test_another_tokenizer_or_end_of_answers_is_another_question(
    evaluation: Evaluation, suite: LongSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(unit: Any) -> dict[str, Any]:
        # Copies, since they remember their digests.
        whole = replace(evaluation)
        return suite._key(whole, Reader("native", replace(whole.candidates[0])), unit)

    written = RulerUnit("ruler_fwe_64", 64, ())
    chosen = PapersUnit((PaperQuestion("A paper.", "Is it?", 0),))
    before = [key(written), key(chosen)]
    monkeypatch.setattr(Candidate, "generation_digest", "other ends")
    assert key(written) != before[0]
    assert key(chosen) == before[1]
    monkeypatch.setattr(Evaluation, "tokenizer_digest", "other tokens")
    assert key(chosen) != before[1]


def test_one_task_that_fails_leaves_the_others(
    evaluation: Evaluation, suite: LongSuite, material_config: MaterialConfig, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"data": [')
    tasks = ("niah_singel_1", "cwe", "fwe", "qa_squad", "qa_hotpot")
    ruler = RulerConfig(tasks, 1, replace(material_config, squad=str(broken)))
    chosen = replace(suite, lengths=(NATIVE, 65_536), ruler=ruler)
    found = chosen.run(evaluation)
    assert list(found.content["models"][0]["results"]) == [f"ruler_fwe_{NATIVE}"]
    expected = {
        "ruler_niah_singel_1": "did you mean 'niah_single_1'",
        f"ruler_cwe_{NATIVE}": "choose a longer length",
        f"ruler_qa_squad_{NATIVE}": "not squad's own JSON",
        f"ruler_qa_hotpot_{NATIVE}": "hotpotqa=FILE",
        "length 65536": "beyond the longest window of the models, 2048",
    }
    assert set(found.failures) == set(expected)
    for what, message in expected.items():
        assert message in found.failures[what]
        assert "\n" not in found.failures[what]
    problems = "\n".join(chosen.problems(evaluation))
    assert all(message in problems for message in expected.values())


def test_nothing_to_ask_is_an_error(evaluation: Evaluation) -> None:
    with pytest.raises(EvaluationError, match="every part of the suite is null"):
        LongSuite().run(evaluation)
    with pytest.raises(EvaluationError, match="beyond the longest window"):
        LongSuite(lengths=(9999,), ruler=RulerConfig(("fwe",), 1)).run(evaluation)


def test_a_window_below_all_default_lengths_is_named(evaluation: Evaluation) -> None:
    suite = LongSuite(ruler=RulerConfig(("fwe",), 1))
    with pytest.raises(
        EvaluationError, match=r"window of the models, 2048, is below all of \[4096"
    ):
        suite.run(evaluation)
    (problem,) = suite.problems(evaluation)
    assert "set eval.long.lengths" in problem


def test_lengths_without_room_for_the_scored_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions\.last=256 .* the length 200 has no room"):
        LongSuite(lengths=(200, NATIVE), positions=PositionsConfig())
    with pytest.raises(ValueError, match="the length 4096 has no room"):
        LongSuite(positions=PositionsConfig(last=4096, sliding=4096))
    assert LongSuite(lengths=(200, NATIVE)).lengths == (200, NATIVE)


def test_a_model_that_has_diverged_is_named(
    evaluation: Evaluation, suite: LongSuite, diverge: Callable[[Candidate], Candidate]
) -> None:
    _, scaled, trained = evaluation.candidates
    asked = replace(evaluation, candidates=(scaled, diverge(trained)))
    found = replace(suite, lengths=(NATIVE,)).run(asked)
    assert found.failures.keys() == {"after ard"}
    assert "the model's logits are not finite" in found.failures["after ard"]
    assert [m["name"] for m in found.content["models"]] == ["scaled"]


def test_a_limit_is_marked(evaluation: Evaluation, suite: LongSuite) -> None:
    chosen = replace(suite, lengths=(NATIVE,), limit=1)
    found = chosen.run(evaluation)
    assert found.content["limit"] == 1
    for model in found.content["models"]:
        for result in model["results"].values():
            assert (result["n"], result["limit"], result["stderr"]) == (1, 1, None)
        assert all(mean["stderr"] is None for mean in model["ruler_by_length"].values())
    for table in chosen.tables(found.content):
        assert "limit=1" in table.title
        assert table.name.endswith("_limit_1")
    assert all("/long@limit1/" in name for name in chosen.summary(found.content))


def test_what_is_named_twice_is_asked_once(
    evaluation: Evaluation, suite: LongSuite, material_config: MaterialConfig
) -> None:
    twice = replace(
        suite,
        ruler=RulerConfig(("fwe", "fwe"), 1, material_config),
        depth=DepthConfig((0.0, 100.0, 0.0), 1),
    )
    units = twice._units(evaluation, twice._readers(evaluation), {})
    assert [unit.name for unit in units] == [
        *(f"ruler_fwe_{NATIVE}", f"ruler_fwe_{SCALED}"),
        *(f"needle_depth_{NATIVE}", f"needle_depth_{SCALED}"),
    ]
    assert isinstance(units[2], RulerUnit)
    assert [sample.depth for sample in units[2].samples] == [0.0, 100.0]


def test_lengths_follow_the_windows(evaluation: Evaluation) -> None:
    suite = LongSuite()
    readers = suite._readers(evaluation)
    assert suite._lengths(readers) == ()
    longer = replace(evaluation.candidates[1], scaling=LinearScaling("linear", 16_384))
    readers = suite._readers(replace(evaluation, candidates=(longer,)))
    assert suite._lengths(readers) == (4096, 8192, 16384)


def test_papers_are_cut_or_retrieved_from_and_counted(
    evaluation: Evaluation, suite: LongSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = (
        PaperQuestion("The lamp is red. " * 10, "Is the lamp red?", 0),
        PaperQuestion("The lamp is red. " * 100, "Is the lamp blue?", 1),
        PaperQuestion("No lamp is here. " * 20, "Is a lamp here?", 1),
    )
    monkeypatch.setattr(LongSuite, "_papers", lambda self: PapersUnit(items))
    chosen = replace(suite, ruler=None, papers=True)
    found = chosen.run(evaluation)
    by_name = {m["name"]: m["results"]["qasper_yesno"] for m in found.content["models"]}
    assert by_name["native"]["truncated"] == 1
    assert by_name["scaled"]["truncated"] == 0
    assert by_name["native + BM25"]["truncated"] == 0
    assert by_name["scaled"]["chance"] == pytest.approx(2 / 3)
    (table,) = chosen.tables(found.content)
    assert "the commoner answer alone: 0.667" in table.notes


def test_processes_share_the_items_in_turn(
    evaluation: Evaluation, suite: LongSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, run one after the other, with what they exchange kept in between."""
    from torch import distributed

    (unit,) = (
        u
        for u in suite._units(evaluation, suite._readers(evaluation), {})
        if u.name == f"ruler_fwe_{SCALED}"
    )
    reader = Reader("scaled", evaluation.candidates[1])
    given: list[tuple[list[Any], str | None]] = []

    def exchange(results: list[Any], mine: Any) -> None:
        given.append(mine)
        results[:] = (given * 2)[:2]

    monkeypatch.setattr(distributed, "all_gather_object", exchange)
    with reader.candidate.loaded(device="cpu", dtype="float32") as network:
        session = Session(reader, network, evaluation.tokenizer, "auto")
        alone, error = _gathered(evaluation, unit, session)
        assert error is None
        for rank in (0, 1):
            ranked = replace(evaluation, rank=rank, size=2)
            merged, error = _gathered(ranked, unit, replace(session, rank=rank, size=2))
    assert [len(values) for values, _ in given] == [1, 1]
    assert error is None
    assert merged == alone

    # What fails in one process is everyone's answer, and nobody waits for ever.
    given[:] = [([], "out of room")]
    assert (
        _gathered(replace(evaluation, size=2), unit, replace(session, size=2))[1] == "out of room"
    )
