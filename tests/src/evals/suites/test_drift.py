"""The drift suite on the tiny model: what is compared with what, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from src.evals.divergence import RELATIONS, evaluate
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.suites.drift import DriftSuite
from src.passes.capture import attention_name
from src.results import DriftResults, parse

LENGTH = 40
BINS = DriftSuite(length=LENGTH, edges=(0, 1, 4, 16, 64)).bins


def model(factor: float) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if factor != 1:
        rope |= {"rope_type": "linear", "factor": factor}
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        rope_parameters=rope,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention_name("sdpa")
        ).eval()


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 64, (2, LENGTH))


def dense_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of causal rows of scores [h, t, t], mean over heads [t]."""
    mask = torch.ones(LENGTH, LENGTH).tril().bool()
    p, q = (torch.log_softmax(x.double().masked_fill(~mask, -1e30), -1) for x in (teacher, student))
    return torch.where(mask, p.exp() * (p - q), 0).sum(-1).mean(0)


def captured(network: Any, row: np.ndarray) -> Any:
    from src.passes.capture import QKVCapture

    capture = QKVCapture(range(2))
    with torch.no_grad(), capture.running():
        out = network(input_ids=torch.from_numpy(row[None]), output_hidden_states=True)
    return capture.take(), out


def test_a_model_has_not_drifted_from_itself(text: np.ndarray) -> None:
    native = model(1)
    found = evaluate(native, native, text, BINS, name="itself")
    for relation in RELATIONS:
        assert found["relation_kl"][relation] == pytest.approx([0, 0], abs=1e-6)
    assert found["hidden_cosine"] == pytest.approx([1, 1])
    assert found["attention_kl"] == pytest.approx([0, 0], abs=1e-6)
    assert found["logit_kl"] == pytest.approx(0, abs=1e-6)


def test_figures_are_those_of_dense_formulas(text: np.ndarray) -> None:
    native, scaled = model(1), model(4)
    found = evaluate(native, scaled, text, BINS, name="scaled")
    alpha = 8**-0.5
    rows: dict[str, list[torch.Tensor]] = {r: [] for r in (*RELATIONS, "qk", "logits")}
    cosine = []
    for row in text:
        (teacher, out), (student, own) = captured(native, row), captured(scaled, row)
        for layer in range(2):
            pairs = zip(RELATIONS, student[layer][:3], teacher[layer][:3], strict=True)
            for relation, x, y in pairs:
                rows[relation].append(dense_kl(alpha * x[0] @ x[0].mT, alpha * y[0] @ y[0].mT))
            scores = [
                alpha * s[layer].q_bhtd[0] @ s[layer].k_bgtd[0].repeat_interleave(2, 0).mT
                for s in (student, teacher)
            ]
            rows["qk"].append(dense_kl(*scores))
            cosine.append(
                torch.cosine_similarity(
                    own.hidden_states[layer + 1][0], out.hidden_states[layer + 1][0], dim=-1
                ).mean()
            )
        p, q = (torch.log_softmax(o.logits[0].double(), -1) for o in (out, own))
        rows["logits"].append((p.exp() * (p - q)).sum(-1))

    def by_layer(values: list[torch.Tensor]) -> list[float]:
        return [(values[i] + values[i + 2]).mean().item() / 2 for i in range(2)]

    for relation in RELATIONS:
        assert found["relation_kl"][relation] == pytest.approx(by_layer(rows[relation]), rel=1e-4)
        mean_t = torch.stack(rows[relation]).mean(0)
        bins = [mean_t[a:b].mean().item() for a, b in ((0, 1), (1, 4), (4, 16), (16, 40))]
        assert found["relation_kl_by_position"][relation] == pytest.approx(bins, rel=1e-4, abs=1e-6)
    assert found["relation_kl_by_position"]["edges"] == [0, 1, 4, 16]
    assert found["relation_kl"]["qq"][0] > 1e-3
    assert found["attention_kl"] == pytest.approx(by_layer(rows["qk"]), rel=1e-4)
    assert found["hidden_cosine"] == pytest.approx(
        [(cosine[i] + cosine[i + 2]).item() / 2 for i in range(2)], rel=1e-5
    )
    assert found["logit_kl"] == pytest.approx(torch.stack(rows["logits"]).mean().item(), rel=1e-4)
    by_both = found["relation_kl_by_layer_and_position"]["qq"]
    assert len(by_both) == 2
    assert len(by_both[0]) == 4


def test_edges_ascend_from_zero() -> None:
    with pytest.raises(ValueError, match="begin at 0"):
        DriftSuite(edges=(1, 4))
    assert DriftSuite(length=64).bins == (0, 1, 4, 16)


def test_figures_that_are_not_finite_are_refused(text: np.ndarray) -> None:
    native, broken = model(1), model(1)
    broken.get_output_embeddings().weight.data[3] = float("inf")
    with pytest.raises(EvaluationError, match="logits are not finite"):
        evaluate(native, broken, text, BINS, name="broken")


SUITE = DriftSuite(length=128, segments=2, edges=(0, 1, 8, 64))


def test_the_scaled_model_has_drifted_and_the_suite_says_where(evaluation: Evaluation) -> None:
    found = SUITE.run(evaluation).record
    assert found is not None
    record = parse(json.dumps(found.plain(), allow_nan=False), DriftResults)
    assert record is not None
    scaled, trained = record.models
    assert (scaled.name, trained.name) == ("scaled", "after ard")
    assert record.edges == (0, 1, 8, 64)
    for relation in ("qq", "kk", "vv"):
        assert len(scaled.relation_kl[relation]) == 2
        assert len(scaled.relation_kl_by_position[relation]) == 4
    # Only positions differ, so the first layer's values are those of the native model, and the
    # first token, which sees itself alone, has nothing to differ in.
    assert scaled.relation_kl["vv"][0] == pytest.approx(0, abs=1e-6)
    assert scaled.relation_kl["qq"][0] > 1e-4
    assert scaled.relation_kl_by_position["qq"][0] == pytest.approx(0, abs=1e-6)
    # Other weights are further away than another scaling.
    assert trained.logit_kl > scaled.logit_kl > 0
    assert trained.hidden_cosine[-1] < scaled.hidden_cosine[-1]
    (table,) = SUITE.tables(record)
    assert [row[0] for row in table.rows] == ["scaled", "after ard"]
    assert all(table.cells(row) for row in table.rows)
    assert SUITE.summary(record)["eval/scaled/drift/logit_kl"] == scaled.logit_kl


def test_a_second_run_is_read_from_the_cache(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SUITE.run(evaluation)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("src.evals.suite.load_model", refuse)
    assert SUITE.run(evaluation).record == first.record


def test_what_cannot_be_compared_is_refused(evaluation: Evaluation) -> None:
    alone = replace(evaluation, candidates=evaluation.candidates[:1])
    with pytest.raises(EvaluationError, match="give run=RUN_DIR"):
        SUITE.run(alone)
    beyond = replace(SUITE, length=4096)
    assert "longer than the native window" in beyond.problems(evaluation)[0]
    longest = replace(SUITE, length=1024, segments=1)
    assert not SUITE.problems(evaluation)
    few = replace(evaluation, data=replace(evaluation.data, held_out=()))
    assert "hold out longer" in longest.problems(few)[0]
    assert SUITE.run(replace(evaluation, rank=1, size=2)).record is None


def test_a_model_that_has_diverged_is_named(
    evaluation: Evaluation, diverge: Callable[[Candidate], Candidate]
) -> None:
    native, scaled, trained = evaluation.candidates
    found = SUITE.run(replace(evaluation, candidates=(native, scaled, diverge(trained)))).record
    assert found is not None
    assert found.failures.keys() == {"after ard"}
    assert "the model's logits are not finite" in found.failures["after ard"]
    assert [m.name for m in found.models] == ["scaled"]
