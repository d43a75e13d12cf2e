"""Scores of groups of runs: against tokens, by aligned relations, by scaling factor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from src.report import formatting
from src.report.charts import DASHES, Axis, Chart, Series, binary_tokens, method_slots
from src.report.figures.answer import matrices
from src.report.figures.base import EVALUATE, SWEEP, Choice, Figure, line, look_label
from src.report.groups import Group, Metric, ReportData, grouped, metrics_of
from src.report.names import method_name, scaling_name


def _budget(data: ReportData) -> Iterator[Choice]:
    """One line for each method and scaling; a chart for each block and metric."""
    for matrix, chart in matrices(data.groups):
        yield (matrix.block, matrix.metric.label), chart


def _weights(data: ReportData) -> Iterator[Choice]:
    """Runs that differ only in the weights of the relations."""
    for metric in metrics_of(data.groups):
        measured = [g for g in data.groups if g.weights and metric.key in g.estimates]
        ablations = _ablations(measured)
        weights = {group.weights or "" for one in ablations for group in one}
        labels = sorted(weights, key=_weights_order)
        place = {label: float(place) for place, label in enumerate(labels)}
        series = tuple(
            line(
                _ablation_name(one, alone=len(ablations) == 1),
                one,
                metric,
                lambda group, place=place: place[group.weights or ""],
                slot,
                mode="dots",
            )
            for slot, one in enumerate(ablations)
        )
        if series:
            x = Axis("aligned", categories=tuple(labels))
            yield (metric.label,), Chart(x, Axis(metric.title), series)


def _ablations(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that differ only in the weights of relations, with at least two different weights."""

    def others(group: Group) -> str:
        terms = {key.rpartition(".")[0] for key in group.settings if ".weights." in key}
        return group.without(*(f"{term}." for term in terms))

    sets = grouped(groups, others).values()
    return [one for one in sets if len({group.weights for group in one}) > 1]


def _weights_order(label: str) -> tuple[int, bool, list[int]]:
    """One relation first, then two, then three; equal weights before others; queries first."""
    parts = label.split("+")
    order = [place for part in parts for place, letter in enumerate("QKVA") if letter in part[:2]]
    return (len(parts), any(part[0].isdigit() for part in parts), order)


def _ablation_name(one: Sequence[Group], *, alone: bool) -> str:
    first = one[0]
    lr = next((v for k, v in first.settings.items() if k.endswith(".lr")), None)
    look, rate = ("", "") if alone else (look_label(first.look), f"lr {lr}" if lr else "")
    parts = [first.method_name, look, binary_tokens(first.tokens), rate]
    return formatting.text(", ".join(part for part in parts if part))


def _scaling(data: ReportData) -> Iterator[Choice]:
    """One line for each method and kind of scaling."""
    by_model = grouped(data.groups, lambda group: (group.model_name, group.tokens))
    slots = method_slots([group.method for group in data.groups])
    for (model, tokens), kin in sorted(by_model.items(), key=lambda item: -len(item[1])):
        for metric in metrics_of(kin):
            series = _scaling_series(kin, metric, slots)
            if series:
                factors = sorted({p.x for one in series for p in one.points})
                x = Axis("scaling factor", log=True, ticks=tuple((f, f"{f:g}x") for f in factors))
                name = formatting.text(f"{model}, {binary_tokens(tokens)} tokens")
                yield (name, metric.label), Chart(x, Axis(metric.title), tuple(series))


def _scaling_series(kin: Sequence[Group], metric: Metric, slots: dict[str, int]) -> list[Series]:
    measured = [group for group in kin if group.factor and metric.key in group.estimates]
    lines = grouped(measured, lambda group: (group.method, group.rope))
    swept = {key: line for key, line in lines.items() if len({g.factor for g in line}) > 1}
    ropes = sorted({rope for _, rope in swept}, key=lambda rope: (rope != "linear", rope))
    return [
        line(
            f"{method_name(method)}, {scaling_name(rope, None)}",
            swept[method, rope],
            metric,
            lambda group: group.factor or 1.0,
            slots[method],
            DASHES[min(ropes.index(rope), len(DASHES) - 1)],
        )
        for method, rope in sorted(swept, key=lambda key: (slots[key[0]], ropes.index(key[1])))
    ]


FIGURES = (
    Figure(
        "budget",
        "Scores by training tokens",
        "answer",
        ("compared", "metric"),
        _budget,
        "Means over seeds, bars are 95% intervals. Grey, if any: untrained models. Dotted: "
        "the papers' budgets, 4.25M tokens of LinearARD and 256M of its rivals.",
        "No finished run has scores yet. Runs at several budgets, then their evaluation:",
        f"{SWEEP}token_budget\n{EVALUATE}short",
    ),
    Figure(
        "weights",
        "Which relations are aligned",
        "settings",
        ("metric",),
        _weights,
        "Runs of one colour differ in nothing but the relations' weights and the seed.",
        "No two evaluated runs differ in the relations' weights alone. The ablation:",
        f"{SWEEP}qkv_weights\n{EVALUATE}short",
    ),
    Figure(
        "scaling",
        "Scaling factor and method",
        "settings",
        ("model", "metric"),
        _scaling,
        "Colour is the method, the dash is the kind of scaling.",
        "No method was evaluated at two scaling factors. The ablation:",
        f"{SWEEP}scaling_factor\n{EVALUATE}short",
    ),
)
