"""Drift of small models, against dense float64 formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from src.evals.suite import EvaluationError
from src.evals.suites.drift import RELATIONS, DriftSuite, evaluate
from src.passes.capture import attention_name

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
    with torch.no_grad(), capture.recording():
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
            for relation, x, y in zip(RELATIONS, student[layer], teacher[layer], strict=True):
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
