"""The relation loss against the formula, written out row by row in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.relation_kl.api import Backend
from src.models.config import ModelConfig
from src.models.facts import ModelFacts
from src.models.hf_config import native_config, scaled_config
from src.models.loading import load_model
from src.models.rope import LinearScaling, NativeRope
from src.models.shapes import facts_of
from src.objectives.base import QKV, Batch, Outputs
from src.objectives.relation import Relation, RelationWeights
from src.passes.capture import QKVCapture
from src.settings import strict
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

T, D = 7, 6
FACTS = ModelFacts(layers=3, windows=(None, None, None), heads=4, kv_heads=2, head_dim=D)
BATCH = Batch(torch.zeros(2, T, dtype=torch.int64))
RELATIONS = ("qq", "kk", "vv")

Normalization = Literal["own_heads", "reference"]


def draw(seed: int, facts: ModelFacts, dtype: torch.dtype = torch.float64) -> dict[int, QKV]:
    """Captured tensors of every layer, normally distributed."""
    generator = torch.Generator().manual_seed(seed)

    def side(heads: int) -> Tensor:
        x_bhtd = torch.randn(2, heads, T, D, generator=generator, dtype=torch.float64)
        return x_bhtd.to(dtype).requires_grad_()

    kv = facts.kv_heads
    return {i: QKV(side(facts.heads), side(kv), side(kv)) for i in range(facts.layers)}


def loss_of(
    objective: Relation,
    student: dict[int, QKV],
    teacher: dict[int, QKV],
    facts: ModelFacts = FACTS,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the objective gives for two models, layer by layer as the engine calls it."""
    layers = {
        i: objective.layer(i, teacher[i], student[i], facts) for i in objective.chosen_layers(facts)
    }
    return objective.loss(BATCH, None, Outputs(layers=layers), facts)


def row_divergences(
    student_bhtd: Tensor, teacher_bhtd: Tensor, *, window: int | None, temperature: float
) -> Tensor:
    """KL(teacher || student) of each row, [b, h, t], over the j <= i with i - j < window."""
    scale = 1 / (math.sqrt(student_bhtd.shape[-1]) * temperature)
    rows = []
    for i in range(student_bhtd.shape[2]):
        first = 0 if window is None else max(0, i - window + 1)
        seen = slice(first, i + 1)
        s, t = (
            scale * (x[:, :, i, None].double() * x[:, :, seen].double()).sum(-1)
            for x in (student_bhtd, teacher_bhtd)
        )
        p = t.exp() / t.exp().sum(-1, keepdim=True)
        q = s.exp() / s.exp().sum(-1, keepdim=True)
        rows.append((p * (p / q).log()).sum(-1))
    return torch.stack(rows, dim=-1)


def by_the_formula(
    student: dict[int, QKV],
    teacher: dict[int, QKV],
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    layers: Sequence[int] = (0, 1, 2),
    windows: Sequence[int | None] = (None, None, None),
    temperature: float = 1.0,
    divide_by_query_heads: bool = False,
) -> Tensor:
    """The loss: mean over layers of the weighted sum of the relations' mean row."""
    total = torch.zeros((), dtype=torch.float64)
    for layer in layers:
        query_rows = student[layer].q_bhtd.shape[:3].numel()
        for weight, s, t in zip(weights, student[layer][:3], teacher[layer][:3], strict=True):
            rows = row_divergences(s, t.detach(), window=windows[layer], temperature=temperature)
            count = query_rows if divide_by_query_heads else rows.numel()
            total = total + weight * rows.sum() / count / len(layers)
    return total


def leaves(qkv: dict[int, QKV]) -> list[Tensor]:
    return [x for layer in qkv.values() for x in layer[:3]]


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, zeros for tensors that the loss does not read."""
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


CASES: dict[str, tuple[dict, dict, ModelFacts]] = {
    "defaults": ({}, {}, FACTS),
    "weights": (
        {"weights": RelationWeights(0.5, 2.0, 3.0)},
        {"weights": (0.5, 2.0, 3.0)},
        FACTS,
    ),
    "only_queries": ({"weights": RelationWeights(1, 0, 0)}, {"weights": (1, 0, 0)}, FACTS),
    "only_keys": ({"weights": RelationWeights(0, 1, 0)}, {"weights": (0, 1, 0)}, FACTS),
    "only_values": ({"weights": RelationWeights(0, 0, 1)}, {"weights": (0, 0, 1)}, FACTS),
    "no_keys": ({"weights": RelationWeights(1, 0, 2)}, {"weights": (1, 0, 2)}, FACTS),
    "last_layer": ({"layers": "last"}, {"layers": (2,)}, FACTS),
    "listed_layers": ({"layers": (2, 0)}, {"layers": (0, 2)}, FACTS),
    "windows": (
        {},
        {"windows": (4, None, 1)},
        replace(FACTS, windows=(4, None, 1)),
    ),
    "last_layers_own_window": (
        {"layers": "last"},
        {"layers": (2,), "windows": (None, None, 3)},
        replace(FACTS, windows=(None, None, 3)),
    ),
    "temperature": ({"temperature": 2.5}, {"temperature": 2.5}, FACTS),
    "reference_normalization": (
        {"normalization": "reference"},
        {"divide_by_query_heads": True},
        FACTS,
    ),
    "reference_normalization_and_weights": (
        {"normalization": "reference", "weights": RelationWeights(0, 3, 0.25)},
        {"divide_by_query_heads": True, "weights": (0, 3, 0.25)},
        FACTS,
    ),
    "teacher_chunks": ({"teacher_chunk": 6}, {"windows": (3, 3, 3)}, FACTS),
    "teacher_chunks_and_a_layers_window": (
        {"teacher_chunk": 6},
        {"windows": (2, 3, 3)},
        replace(FACTS, windows=(2, None, 5)),
    ),
    "one_key_head": ({}, {}, replace(FACTS, kv_heads=1)),
    "ungrouped": ({}, {}, replace(FACTS, kv_heads=4)),
}


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_the_formulas(case: str, backend: Backend) -> None:
    settings, formula, facts = CASES[case]
    student, teacher = draw(1, facts), draw(2, facts)
    loss, _ = loss_of(Relation("relation", backend=backend, **settings), student, teacher, facts)
    expected = by_the_formula(student, teacher, **formula)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    ours = gradients(loss, leaves(student))
    theirs = gradients(expected, leaves(student))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_a_factor_on_the_students_scores_leaves_values_alone() -> None:
    student, teacher = draw(1, FACTS), draw(2, FACTS)
    weights = RelationWeights(1, 1, 1, qk=1, av=1)
    factor = 0.77
    loss, _ = loss_of(Relation("relation", weights, student_factor=factor), student, teacher)
    root = math.sqrt(factor)
    scaled = {i: QKV(root * q, root * k, v) for i, (q, k, v, _) in student.items()}
    expected, _ = loss_of(Relation("relation", weights), scaled, teacher)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours, theirs = gradients(loss, leaves(student)), gradients(expected, leaves(student))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_drift_takes_a_share_of_the_layers() -> None:
    objective = Relation("relation", layers="drift", drift_share=0.5)
    assert objective.awaits_drift
    assert len(objective.chosen_layers(replace(FACTS, layers=4, windows=(None,) * 4))) == 2
    chosen = objective.with_drift([0.1, 0.7, 0.2, 0.7])
    assert chosen.layers == (1, 3)
    assert not chosen.awaits_drift
    assert objective.with_drift([0.5, 0.5, 0.5, 0.0]).layers == (0, 1)
    few = replace(objective, drift_share=0.01)
    assert few.with_drift([0.1, 0.2]).layers == (1,), "at least one"
    assert Relation("relation").with_drift([1.0, 2.0, 3.0]).layers == "all"


def test_chunks_and_the_error_of_av_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"teacher_chunk=6 and weights\.av=1"):
        Relation("relation", RelationWeights(av=1), teacher_chunk=6)


@pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])
def test_float32_is_the_formula_to_rounding(backend: Backend) -> None:
    student, teacher = draw(1, FACTS, torch.float32), draw(2, FACTS, torch.float32)
    loss, _ = loss_of(Relation("relation", backend=backend), student, teacher)
    assert loss.dtype == torch.float32
    expected = by_the_formula(student, teacher)
    # A row's KL is a sum of T terms that log-sum-exps of order 10 enter with float32's half ulp.
    rounding = 10 * T * torch.finfo(torch.float32).eps
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=rounding)
    ours, theirs = gradients(loss, leaves(student)), gradients(expected, leaves(student))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=rounding)


def test_reference_normalization_underweights_grouped_keys_and_values_only() -> None:
    student, teacher = draw(1, FACTS), draw(2, FACTS)

    def loss(weights: RelationWeights, normalization: Normalization) -> float:
        objective = Relation("relation", weights=weights, normalization=normalization)
        value, _ = loss_of(objective, student, teacher)
        return value.item()

    ratios = [
        loss(RelationWeights(*one), "reference") / loss(RelationWeights(*one), "own_heads")
        for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert ratios == pytest.approx([1.0, 0.5, 0.5], rel=1e-12)


def attention_probabilities(
    q_bhtd: Tensor, k_bgtd: Tensor, *, window: int | None, temperature: float = 1.0
) -> Tensor:
    """softmax(Q K^T) over what a row sees, dense, [b, h, t, t]."""
    k_bhtd = k_bgtd.repeat_interleave(q_bhtd.shape[1] // k_bgtd.shape[1], dim=1)
    scores = q_bhtd @ k_bhtd.transpose(-1, -2) / (math.sqrt(q_bhtd.shape[-1]) * temperature)
    back = torch.arange(T)[:, None] - torch.arange(T)
    unseen = (back < 0) | (back >= (window or T))
    weights = scores.exp().masked_fill(unseen, 0.0)
    return weights / weights.sum(-1, keepdim=True)


def attention_terms(
    student: dict[int, QKV],
    teacher: dict[int, QKV],
    *,
    qk: float,
    av: float,
    windows: Sequence[int | None],
    temperature: float = 1.0,
) -> Tensor:
    """Mean over layers of qk * KL(attention rows) + av * |A V - teacher's|^2 / |teacher's|^2."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, window in enumerate(windows):
        (qs, ks, vs), (qt, kt, vt) = student[layer][:3], (x.detach() for x in teacher[layer][:3])
        p, q = (
            attention_probabilities(*side, window=window, temperature=temperature)
            for side in ((qt, kt), (qs, ks))
        )
        ratio = torch.where(p > 0, p / q.clamp_min(1e-300), 1.0)
        total = total + qk * (p * ratio.log()).sum(-1).mean()
        group = qs.shape[1] // vs.shape[1]
        made, aim = (
            attention_probabilities(*side[:2], window=window)
            @ side[2].repeat_interleave(group, dim=1)
            for side in ((qs, ks, vs), (qt, kt, vt))
        )
        total = total + av * (made - aim).square().sum() / aim.square().sum()
    return total / len(windows)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("qk", "av", "windows", "temperature"),
    [
        (1.0, 0.0, (None, None, None), 1.0),
        (0.0, 1.0, (None, None, None), 1.0),
        (0.5, 2.0, (4, None, 1), 1.0),
        (3.0, 0.25, (None, 2, 100), 2.5),
    ],
    ids=["rows", "outputs", "both-windows", "both-temperature"],
)
def test_attention_rows_and_outputs_are_the_formulas(
    qk: float,
    av: float,
    windows: tuple[int | None, ...],
    temperature: float,
    kv_heads: int,
    backend: Backend,
) -> None:
    facts = replace(FACTS, windows=windows, kv_heads=kv_heads)
    student, teacher = draw(1, facts), draw(2, facts)
    weights = RelationWeights(0, 0, 0, qk, av)
    objective = Relation("relation", weights=weights, temperature=temperature, backend=backend)
    loss, metrics = loss_of(objective, student, teacher, facts)
    expected = attention_terms(
        student, teacher, qk=qk, av=av, windows=windows, temperature=temperature
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    ours, theirs = (gradients(x, leaves(student)) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    names = [name for name, weight in (("qk", qk), ("av", av)) if weight]
    assert metrics.keys() == {*(f"relation/{n}" for n in names), "relation/by_layer"}


def test_all_five_terms_add_up() -> None:
    student, teacher = draw(1, FACTS), draw(2, FACTS)
    weights = RelationWeights(0.5, 2.0, 3.0, 4.0, 0.125)
    loss, metrics = loss_of(Relation("relation", weights=weights), student, teacher)
    expected = by_the_formula(student, teacher, weights=(0.5, 2.0, 3.0)) + attention_terms(
        student, teacher, qk=4.0, av=0.125, windows=FACTS.windows
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    each = [metrics[f"relation/{n}"].item() for n in ("qq", "kk", "vv", "qk", "av")]
    assert sum(w * x for w, x in zip((0.5, 2.0, 3.0, 4.0, 0.125), each, strict=True)) == (
        pytest.approx(loss.item(), rel=1e-10)
    )


@pytest.mark.parametrize("relation_heads", [1, 2, 3, 12])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_relation_heads_are_concatenated_and_split_again(
    relation_heads: int, scale: float | None
) -> None:
    """The scale is that of their own width, whatever the model states for its heads.

    Teacher with 8 query heads of half the size: widths agree, heads do not."""
    student = draw(1, FACTS)
    teacher = {
        i: QKV(*(x.detach().unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2) for x in qkv[:3]))
        for i, qkv in draw(2, FACTS).items()
    }

    def regrouped(x_bhtd: Tensor) -> Tensor:
        h, d = x_bhtd.shape[1], x_bhtd.shape[3]
        columns = [x_bhtd[:, i // d, :, i % d] for i in range(h * d)]
        size = h * d // relation_heads
        heads = [torch.stack(columns[r * size : (r + 1) * size], -1) for r in range(relation_heads)]
        return torch.stack(heads, 1)

    objective = Relation("relation", relation_heads=relation_heads)
    loss, _ = loss_of(objective, student, teacher, replace(FACTS, scale=scale))
    sides = [{i: QKV(*map(regrouped, x[:3])) for i, x in m.items()} for m in (student, teacher)]
    expected = by_the_formula(*sides)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    ours, theirs = (gradients(x, leaves(student)) for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_relation_heads_leave_the_reference_nothing_to_divide_by() -> None:
    with pytest.raises(ValueError, match="normalization=reference and relation_heads=2 exclude"):
        Relation("relation", relation_heads=2, normalization="reference")


def test_relation_heads_that_do_not_divide_are_refused() -> None:
    """Queries are 24 wide, keys 12."""
    with pytest.raises(ValueError, match="relation_heads=8: it must divide 12, the width of 2"):
        Relation("relation", relation_heads=8).needs(FACTS)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_equal_models_have_no_loss_and_no_gradient(backend: Backend) -> None:
    same = draw(1, FACTS, torch.float32)
    loss, metrics = loss_of(Relation("relation", backend=backend), same, same)
    rounding = 10 * torch.finfo(torch.float32).eps
    assert abs(loss.item()) < rounding
    assert all(value.abs().max() < rounding for value in metrics.values())
    assert all(g.abs().max() < rounding for g in gradients(loss, leaves(same)))


def test_metrics_are_the_unweighted_relations_and_the_weighted_layers() -> None:
    student, teacher = draw(1, FACTS), draw(2, FACTS)
    objective = Relation("relation", weights=RelationWeights(2.0, 0.0, 3.0), layers=(2, 1))
    loss, metrics = loss_of(objective, student, teacher)
    assert metrics.keys() == {"relation/qq", "relation/vv", "relation/by_layer"}
    assert not any(value.requires_grad for value in metrics.values())
    for name, alone in {"qq": (1, 0, 0), "vv": (0, 0, 1)}.items():
        expected = by_the_formula(student, teacher, layers=(1, 2), weights=alone)
        torch.testing.assert_close(metrics[f"relation/{name}"], expected.detach())
    layers = [
        by_the_formula(student, teacher, layers=(i,), weights=(2, 0, 3)).item() for i in (1, 2)
    ]
    assert metrics["relation/by_layer"].tolist() == pytest.approx(layers)
    assert metrics["relation/by_layer"].mean().item() == pytest.approx(loss.item())


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = draw(1, FACTS), draw(2, FACTS)
    loss, _ = loss_of(Relation("relation"), student, teacher)
    loss.backward()
    assert all(x.grad is None for x in leaves(teacher))
    assert all(x.grad is not None for x in leaves(student))


@pytest.mark.parametrize("layers", [(), (0, 0), (3,), (0, 7)], ids=str)
def test_layers_the_model_lacks_are_refused(layers: tuple[int, ...]) -> None:
    objective = Relation("relation", layers=layers)
    with pytest.raises(ValueError, match=r"layers=\[.*\]: give .* indices from 0 to 2"):
        objective.needs(FACTS)


@pytest.fixture(scope="module")
def plain(compose_plain: Callable[..., dict]) -> dict:
    return compose_plain("model=tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [-1]}, "greater than or equal to 0"),
        ({"layers": "first"}, "'all', 'last' or 'drift'"),
        ({"temperature": 0.0}, "temperature: .*greater than 0"),
        ({"normalization": "rows"}, "normalization: .*'own_heads' or 'reference'"),
        ({"weights": {"qq": 0.0, "kk": 0.0, "vv": 0.0}}, "all 0"),
        ({"weights": {"kq": 1.0}}, "unknown key 'kq'"),
    ],
    ids=str,
)
def test_the_boundary_refuses(plain: dict, change: dict, message: str) -> None:
    changed = copy.deepcopy(plain)
    changed["objective"]["terms"]["relation"].update(change)
    with pytest.raises(ConfigError, match=rf"objective\.terms\.relation.*{message}"):
        strict.load_plain(RunConfig, changed)


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", (0, 1, 2)), ("last", (2,)), ((2, 0), (0, 2))], ids=str
)
def test_needs_are_the_chosen_layers_and_a_teacher(layers: Any, expected: tuple) -> None:
    needs = Relation("relation", layers=layers).needs(FACTS)
    assert (needs.teacher, needs.head, needs.qkv_layers) == (True, False, expected)


def test_work_is_six_products_a_causal_tile_of_each_weighted_relation() -> None:
    assert Relation("relation").flops(T, FACTS) == 3 * 6 * (4 + 2 + 2) * D * T * T
    queries = Relation("relation", weights=RelationWeights(1, 0, 0), layers="last")
    assert queries.flops(T, FACTS) == 6 * 4 * D * T * T


def rotated(x_bhtd: Tensor, factor: float) -> Tensor:
    """RoPE, two halves rotated against each other, positions divided by the factor."""
    scaling = LinearScaling("linear", target_length=8 * T, factor=factor)
    frequencies = scaling.inverse_frequencies(NativeRope(D, 10_000.0, T))
    angles_td = torch.from_numpy(np.arange(T)[:, None] * frequencies[None, :])
    a, b = x_bhtd.chunk(2, dim=-1)
    cos, sin = angles_td.cos(), angles_td.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def test_scaled_rope_alone_gives_a_loss_on_queries_and_keys() -> None:
    unrotated = draw(1, FACTS)

    def model(factor: float) -> dict[int, QKV]:
        return {
            i: QKV(rotated(q, factor), rotated(k, factor), v)
            for i, (q, k, v, _) in unrotated.items()
        }

    def metrics(factor: float) -> dict[str, float]:
        _, found = loss_of(Relation("relation"), model(factor), model(1.0))
        return {name: found[f"relation/{name}"].item() for name in RELATIONS}

    assert metrics(1.0) == pytest.approx(dict.fromkeys(RELATIONS, 0.0), abs=1e-12)
    scaled = metrics(8.0)
    assert scaled["qq"] > 1e-3
    assert scaled["kk"] > 1e-3
    assert scaled["vv"] == pytest.approx(0.0, abs=1e-12), "values are not rotated"


@pytest.fixture(scope="module")
def tiny(compose_run: Callable[..., RunConfig]) -> ModelConfig:
    return compose_run("model=tiny").model


def captured(tiny: ModelConfig, factor: float, ids_bt: Tensor) -> dict[int, QKV]:
    """q, k, v of a real model with random weights of usual size, under linear scaling."""
    scaling = LinearScaling("linear", target_length=8 * tiny.native_window, factor=factor)
    network = load_model(tiny, scaled_config(tiny, scaling), dtype=torch.float32, capture=True)
    for name, parameter in network.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            # Random initial weights are so small that attention hardly looks at positions.
            parameter.data.mul_(20)
    capture = QKVCapture(range(2))
    with capture.running():
        network.get_decoder()(input_ids=ids_bt, use_cache=False)
    return capture.take()


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_captured_models_differ_by_their_rope_alone(tiny: ModelConfig, backend: Backend) -> None:
    ids_bt = torch.randint(0, 256, (2, 48), generator=torch.Generator().manual_seed(0))
    facts = facts_of(native_config(tiny))
    objective = Relation("relation", backend=backend)
    teacher = captured(tiny, 1.0, ids_bt)

    def loss(factor: float) -> tuple[Tensor, dict[str, Tensor]]:
        student = captured(tiny, factor, ids_bt)
        return loss_of(objective, student, teacher, facts)

    unscaled, _ = loss(1.0)
    assert abs(unscaled.item()) < 1e-6
    scaled, metrics = loss(8.0)
    assert scaled.item() > 1e-4
    assert metrics["relation/qq"] > 0
    assert metrics["relation/kk"] > 0
    scaled.backward()


def references_loss(student: dict[int, QKV], teacher: dict[int, QKV]) -> Tensor:
    """The public reference's loss, by its own steps: all layers, causal, no padding, weights 1.

    Each relation's KL is summed over rows and its own heads and divided by batch times *query*
    heads times tokens; the three are added up, over all layers, and divided by their number.
    """
    sums = dict.fromkeys(RELATIONS, torch.zeros(()))
    for layer in student:
        denominator = student[layer].q_bhtd.shape[:3].numel()
        for name, s, t in zip(RELATIONS, student[layer][:3], teacher[layer][:3], strict=True):
            scale = s.shape[-1] ** -0.5
            hidden = torch.ones(s.shape[2], s.shape[2], dtype=torch.bool).triu(1)
            s_log, t_log = (
                (x @ x.transpose(-1, -2) * scale)
                .masked_fill(hidden, torch.finfo(x.dtype).min)
                .log_softmax(-1)
                for x in (s, t.detach())
            )
            sums[name] = sums[name] + (t_log.exp() * (t_log - s_log)).sum() / denominator
    return (sums["qq"] + sums["kk"] + sums["vv"]) / len(student)


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_reference_normalization_is_the_public_reference(
    tiny: ModelConfig, backend: Backend
) -> None:
    """Same weights, tokens and scaling, float32: to 1e-5 of the value, gradients alike."""
    ids_bt = torch.randint(0, 256, (2, 96), generator=torch.Generator().manual_seed(4))
    facts = facts_of(native_config(tiny))
    assert facts.heads != facts.kv_heads, "the normalizations differ under grouped heads alone"
    student = {
        i: QKV(*(x.detach().requires_grad_() for x in qkv[:3]))
        for i, qkv in captured(tiny, 8.0, ids_bt).items()
    }
    teacher = captured(tiny, 1.0, ids_bt)
    objective = Relation("relation", normalization="reference", backend=backend)
    loss, _ = loss_of(objective, student, teacher, facts)
    expected = references_loss(student, teacher)
    assert loss.item() > 1e-3
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    wide = {
        i: QKV(*(x.detach().double().requires_grad_() for x in qkv[:3]))
        for i, qkv in student.items()
    }
    exact = gradients(
        references_loss(wide, {i: QKV(*(x.double() for x in t[:3])) for i, t in teacher.items()}),
        leaves(wide),
    )
    ours, theirs = (gradients(x, leaves(student)) for x in (loss, expected))
    for mine, its, true in zip(ours, theirs, exact, strict=True):
        # No further from the exact gradient than a few times what the formula in float32 is.
        its_error = (its - true).abs().max()
        assert (mine - true).abs().max() <= 4 * its_error + 1e-6 * true.abs().max()
