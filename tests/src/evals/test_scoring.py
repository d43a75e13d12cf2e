"""What suites share: cache keys, probes that fail, and processes that share the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from src.evals import scoring, suite
from src.evals.cache import ResultCache
from src.evals.retrieval import RetrievalConfig
from src.evals.ruler.asking import probe
from src.evals.ruler.tasks import samples_of
from src.evals.scoring import Probe, Reader, Session, ask, gathered, readers_of, settings_of
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.suites.ruler import RulerSuite
from src.models.rope import LinearScaling
from src.settings.config import RunConfig


@pytest.fixture(scope="module")
def evaluation(compose_run: Callable[..., RunConfig], tiny_overrides: list[str]) -> Evaluation:
    own = compose_run(*tiny_overrides)
    model = replace(own.model, native_window=512)
    scaled = Candidate("scaled", "scaled", model, LinearScaling("linear", 1024))
    candidates = (Candidate("native", "native", model), scaled)
    return Evaluation(candidates, own.data, "cpu", "float32", ResultCache(None))


def test_another_tokenizer_or_end_of_answers_is_another_question(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Probe("written", {"items": 1}, lambda session: [], generates=True)
    chosen = Probe("chosen", {"items": 1}, lambda session: [])

    def keys() -> list[dict[str, Any]]:
        # Copies, since they remember their digests.
        whole = replace(evaluation)
        reader = Reader(replace(whole.candidates[0]))
        return [one.cache_key(whole, reader, "suite") for one in (written, chosen)]

    before = keys()
    assert [key.get("fused") for key in before] == [None, None]
    assert [
        one.cache_key(replace(evaluation, fused=True), Reader(evaluation.candidates[0]), "suite")
        for one in (written, chosen)
    ] == [{**before[0], "fused": True}, before[1]]
    monkeypatch.setattr(Candidate, "generation_digest", "other ends")
    after = keys()
    assert after[0] != before[0]
    assert after[1] == before[1]
    monkeypatch.setattr(Evaluation, "tokenizer_digest", "other tokens")
    assert keys()[1] != after[1]


def test_what_retrieval_leaves_whole_is_the_models_own_answer(evaluation: Evaluation) -> None:
    native = evaluation.candidates[0]
    alone, retrieving = Reader(native), Reader(native, RetrievalConfig(64))
    assert (retrieving.name, retrieving.role) == ("native + BM25", "retrieval")
    short, long = (Probe("p", {}, lambda session: [], length) for length in (512, 513))
    assert short.cache_key(evaluation, alone, "s") == short.cache_key(evaluation, retrieving, "s")
    assert not long.fits(alone)
    assert long.fits(retrieving)
    assert long.cache_key(evaluation, retrieving, "s") != long.cache_key(evaluation, alone, "s")
    assert [reader.name for reader in readers_of(evaluation, None)] == ["native", "scaled"]


def test_a_probe_that_fails_leaves_the_others(evaluation: Evaluation) -> None:
    def refuse(session: Session) -> list[Any]:
        raise EvaluationError("no room")

    probes = [Probe("bad", {}, refuse), Probe("good", {}, lambda session: [1])]
    failures: dict[str, str] = {}
    readers = [Reader(evaluation.candidates[0])]
    assert ask(evaluation, "s", readers, probes, failures) == {"native": {"good": [1]}}
    assert failures == {"native: bad": "no room"}
    with pytest.raises(EvaluationError, match="native: bad: no room"):
        ask(evaluation, "s", readers, probes[:1], {})
    with pytest.raises(EvaluationError, match=r"eval\.s: there is nothing to ask"):
        ask(evaluation, "s", readers, [], {})


def test_lengths_follow_the_windows(evaluation: Evaluation) -> None:
    failures: dict[str, str] = {}
    readers = readers_of(evaluation, None)
    assert scoring.chosen_lengths(None, readers, failures) == []
    assert failures.keys() == {"lengths"}
    longer = replace(evaluation.candidates[1], scaling=LinearScaling("linear", 16_384))
    assert scoring.chosen_lengths(None, [Reader(longer)], {}) == [4096, 8192, 16384]
    assert scoring.chosen_lengths((1024, 512, 512), readers, {}) == [512, 1024]


def test_processes_share_the_items_in_turn(
    evaluation: Evaluation, material: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, run one after the other, with what they exchange kept in between."""
    from torch import distributed

    tokenizer = evaluation.tokenizer
    samples = samples_of("fwe", 1024, range(2), seed=0, tokenizer=tokenizer, material=material)
    asked = probe("ruler_fwe_1024", list(samples), "auto")
    reader = Reader(evaluation.candidates[1])
    given: list[tuple[list[Any], str | None]] = []

    def exchange(results: list[Any], mine: Any) -> None:
        given.append(mine)
        results[:] = (given * 2)[:2]

    monkeypatch.setattr(distributed, "all_gather_object", exchange)
    with evaluation.loaded(reader.candidate) as network:
        session = Session(reader, network, evaluation)
        alone, error = gathered(asked, session)
        assert error is None
        for rank in (0, 1):
            ranked = replace(session, evaluation=replace(evaluation, rank=rank, size=2))
            merged, error = gathered(asked, ranked)
    assert [len(values) for values, _ in given] == [1, 1]
    assert error is None
    assert merged == alone

    # What fails in one process is everyone's answer, and nobody waits for ever.
    given[:] = [([], "out of room")]
    assert gathered(asked, replace(session, evaluation=replace(evaluation, size=2)))[1] == (
        "out of room"
    )


def test_small_models_stay_loaded_from_suite_to_suite(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = suite.load_model
    loads: list[str] = []

    def counted(model: Any, config: Any, **options: Any) -> Any:
        loads.append(model.name)
        return load(model, config, **options)

    monkeypatch.setattr(suite, "load_model", counted)
    probes = [Probe("one", {}, lambda session: [1])]
    fresh = replace(evaluation, cache=ResultCache(None), kept={})
    for name in ("first", "second"):
        ask(fresh, name, readers_of(fresh, None), probes, {})
    assert len(loads) == len(fresh.candidates)
    with fresh.loaded(fresh.candidates[0], capture=True) as captured:
        assert captured.config._attn_implementation != "sdpa"
    monkeypatch.setattr(suite, "KEPT_SHARE", 0.0)
    loads.clear()
    large = replace(evaluation, cache=ResultCache(None), kept={})
    for name in ("first", "second"):
        ask(large, name, readers_of(large, None), probes, {})
    assert len(loads) == 2 * len(large.candidates)


def test_a_half_counts_in_the_key_and_the_whole_does_not() -> None:
    whole = settings_of(RulerSuite(split="all", samples=7), "samples")
    half = settings_of(RulerSuite(split="test", samples=7), "samples")
    assert half == {**whole, "split": "test"}
    assert not whole.keys() & {"split", "samples"}


@pytest.mark.parametrize(("budget", "tokens"), [(None, 400), (300, 300), (500, 400)])
def test_a_reader_takes_retrievals_budget_but_no_more_than_its_window(
    budget: int | None, tokens: int
) -> None:
    candidate: Any = SimpleNamespace(window=400)
    retrieval: Any = SimpleNamespace(budget=budget)
    assert Reader(candidate, retrieval).budget == tokens
    assert Reader(candidate, None).budget == 400
