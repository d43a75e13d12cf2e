"""The figures of the comparison, from groups of runs: what is drawn, not how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from src.report import formatting, groups
from src.report.charts import (
    DASHES,
    GRAY,
    Axis,
    Chart,
    Dash,
    Figure,
    Heatmap,
    Point,
    Series,
    binary_tokens,
    method_slots,
    short_number,
    token_ticks,
)
from src.report.groups import Group, Metric
from src.report.runs import Run

PAPER_TOKENS = 4_456_448
BASELINE_TOKENS = 268_435_456
MARKS = ((float(PAPER_TOKENS), "4.25M"), (float(BASELINE_TOKENS), "256M"))
SCORES = (
    groups.RECOVERY,
    groups.GAP_CLOSED,
    groups.SHORT,
    groups.PERPLEXITY_GAP,
    groups.LONG,
)
_MAX_COLUMNS = 48


def metrics_of(found: Sequence[Group]) -> list[Metric]:
    """The metrics that any group has: scores first, then RULER by length."""
    known = {key for group in found for key in group.estimates}
    return [
        metric for metric in (*SCORES, *map(groups.ruler, lengths(found))) if metric.key in known
    ]


def lengths(found: Sequence[Group]) -> list[int]:
    """The lengths that RULER was run at, in tokens."""
    keys = {key for group in found for key in group.estimates if key.startswith("ruler@")}
    return sorted(int(key.removeprefix("ruler@")) for key in keys)


def budget_figure(found: Sequence[Group]) -> Figure:
    """Scores against training tokens, one line a method; a chart a model, scaling and metric."""
    choices = (
        ((look_label(look), metric.label), _budget_chart(kin, metric, found))
        for look, kin in by_look(found)
        for metric in metrics_of(kin)
    )
    return Figure("budget", "Scores by training tokens", ("model", "metric"), tuple(choices))


def _budget_chart(kin: Sequence[Group], metric: Metric, found: Sequence[Group]) -> Chart:
    slots = method_slots([group.method for group in found])
    measured = [group for group in kin if metric.key in group.estimates and group.tokens]
    series = tuple(
        Series(
            formatting.text(method),
            tuple(
                _point(group, metric, group.tokens)
                for group in sorted(members, key=lambda group: (group.tokens, group.rank))
            ),
            slots[method],
            alternatives=True,
        )
        for method, members in _by_method(measured)
    )
    tokens = [point.x for one in series for point in one.points]
    return Chart(
        metric.label,
        Axis("training tokens", log=True, ticks=token_ticks([*tokens, *(x for x, _ in MARKS)])),
        Axis(f"{metric.label} ({metric.unit})"),
        series,
        MARKS,
    )


def by_look(found: Sequence[Group]) -> list[tuple[tuple[str, str, float | None], list[Group]]]:
    """Groups by model and scaling, where most methods are compared first."""
    kin: dict[tuple[str, str, float | None], list[Group]] = defaultdict(list)
    for group in found:
        kin[group.look].append(group)

    def order(item: tuple[tuple[str, str, float | None], list[Group]]) -> tuple[int, int, str]:
        look, members = item
        return (-len({group.method for group in members}), -len(members), str(look))

    return sorted(kin.items(), key=order)


def _by_method(found: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    members: dict[str, list[Group]] = defaultdict(list)
    for group in found:
        members[group.method].append(group)
    slots = method_slots(list(members))
    return sorted(members.items(), key=lambda item: slots[item[0]])


def look_label(look: tuple[str, str, float | None]) -> str:
    """`llama2_7b, linear x8`."""
    model, rope, factor = look
    scaling = f"{rope} x{factor:g}" if factor else rope
    return formatting.text(", ".join(part for part in (model, scaling) if part))


def weights_figure(found: Sequence[Group]) -> Figure:
    """Scores of runs that differ in the weights of the relations alone."""
    return Figure(
        "weights",
        "Which relations are aligned",
        ("metric",),
        _by_metric(found, lambda metric: _weights_chart(found, metric)),
    )


def _weights_chart(found: Sequence[Group], metric: Metric) -> Chart | None:
    def apart(group: Group) -> str:
        terms = {key.rpartition(".")[0] for key in group.settings if ".weights." in key}
        return group.without(*(f"{term}." for term in terms))

    candidates = [group for group in found if group.weights and metric.key in group.estimates]
    sets = _ablations(candidates, apart, lambda group: group.weights)
    labels = sorted({group.weights or "" for one in sets for group in one}, key=_weights_order)
    series = [
        Series(
            _ablation_name(one, sets),
            tuple(
                _point(group, metric, labels.index(group.weights or ""))
                for group in sorted(
                    one, key=lambda group: (labels.index(group.weights or ""), group.rank)
                )
            ),
            slot,
            mode="dots",
            alternatives=True,
        )
        for slot, one in enumerate(sets)
    ]
    if not series:
        return None
    y = Axis(f"{metric.label} ({metric.unit})")
    return Chart(metric.label, Axis("aligned", categories=tuple(labels)), y, tuple(series))


def _weights_order(label: str) -> tuple[int, bool, list[int]]:
    """One relation first, then two, then three; equal weights before others; queries first."""
    parts = label.split("+")
    order = [place for part in parts for place, letter in enumerate("QKVA") if letter in part[:2]]
    return (len(parts), any(part[0].isdigit() for part in parts), order)


def scaling_figure(found: Sequence[Group]) -> Figure:
    """Scores by scaling factor, one line for each method and kind of scaling."""
    by_model: dict[tuple[str, int], list[Group]] = defaultdict(list)
    for group in found:
        by_model[group.model, group.tokens].append(group)
    choices = [
        ((formatting.text(f"{model}, {binary_tokens(tokens)} tokens"), metric.label), chart)
        for (model, tokens), kin in sorted(by_model.items(), key=lambda item: -len(item[1]))
        for metric in metrics_of(kin)
        if (chart := _scaling_chart(kin, metric, found))
    ]
    return Figure("scaling", "Scaling factor and method", ("model", "metric"), tuple(choices))


def _scaling_chart(kin: Sequence[Group], metric: Metric, found: Sequence[Group]) -> Chart | None:
    lines: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in kin:
        if group.factor and metric.key in group.estimates:
            lines[group.method, group.rope].append(group)
    swept = {key: line for key, line in lines.items() if len({g.factor for g in line}) > 1}
    if not swept:
        return None
    slots = method_slots([group.method for group in found])
    ropes = sorted({rope for _, rope in swept}, key=lambda rope: (rope != "linear", rope))
    series = tuple(
        Series(
            formatting.text(f"{method}, {rope}"),
            tuple(
                _point(group, metric, group.factor or 1.0)
                for group in sorted(line, key=lambda group: (group.factor or 1.0, group.rank))
            ),
            slots[method],
            DASHES[min(ropes.index(rope), len(DASHES) - 1)],
            alternatives=True,
        )
        for (method, rope), line in sorted(
            swept.items(), key=lambda item: (slots[item[0][0]], ropes.index(item[0][1]))
        )
    )
    factors = sorted({point.x for one in series for point in one.points})
    return Chart(
        metric.label,
        Axis("scaling factor", log=True, ticks=tuple((f, f"{f:g}x") for f in factors)),
        Axis(f"{metric.label} ({metric.unit})"),
        series,
    )


def ruler_figure(found: Sequence[Group]) -> Figure:
    """RULER against length: all methods at one budget, or each at its largest."""
    choices: list[tuple[tuple[str, str], Chart]] = []
    for look, kin in by_look([group for group in found if lengths([group])]):
        label = look_label(look)
        most = {
            method: max(group.tokens for group in members) for method, members in _by_method(kin)
        }
        own = [group for group in kin if group.tokens == most[group.method]]
        choices.append(((label, "each method at its most tokens"), _ruler_chart(own, found)))
        for tokens in sorted({group.tokens for group in kin}):
            same = [group for group in kin if group.tokens == tokens]
            if len({group.method for group in same}) > 1:
                name = f"all at {binary_tokens(tokens)} tokens"
                choices.append(((label, name), _ruler_chart(same, found)))
    return Figure("ruler", "RULER by length", ("model", "budget"), tuple(choices))


def _ruler_chart(chosen: Sequence[Group], found: Sequence[Group]) -> Chart:
    slots = method_slots([group.method for group in found])
    series = [
        Series(
            formatting.text(f"{method}, {binary_tokens(members[0].tokens)}"),
            tuple(
                _point(group, groups.ruler(length), length)
                for length in lengths(members)
                for group in sorted(members, key=lambda group: group.rank)
                if groups.ruler(length).key in group.estimates
            ),
            slots[method],
            alternatives=True,
        )
        for method, members in _by_method(chosen)
    ]
    baselines: dict[str, Dash] = {"native": "dot", "scaled": "dash"}
    for name, dash in baselines.items():
        figures = next((g.baselines[name] for g in chosen if g.baselines.get(name)), {})
        points = tuple(
            Point(length, estimate.value, estimate.low, estimate.high, name)
            for length in lengths(chosen)
            if (estimate := figures.get(groups.ruler(length).key))
        )
        if points:
            series.append(Series(name, points, GRAY, dash))
    ticks = tuple((float(length), short_length(length)) for length in lengths(chosen))
    return Chart(
        "RULER by length",
        Axis("length (tokens)", log=True, ticks=ticks),
        Axis("RULER (%)"),
        tuple(series),
    )


def short_length(tokens: int) -> str:
    """`32768` -> `32K`."""
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"


def needle_figure(found: Sequence[Group]) -> Figure:
    """Needles found by length and depth, one map a group."""
    charts = []
    looks = [look for look, _ in by_look(found)]
    order = {look: place for place, look in enumerate(looks)}
    slots = method_slots([group.method for group in found])
    for group in sorted(
        found, key=lambda g: (not g.is_main, order[g.look], slots[g.method], -g.tokens)
    ):
        if group.needles:
            columns = sorted({length for length, _ in group.needles})
            rows = sorted({depth for _, depth in group.needles})
            cells = tuple(
                tuple(
                    None if (v := group.needles.get((n, depth))) is None else 100 * v
                    for n in columns
                )
                for depth in rows
            )
            charts.append(
                (
                    (group_label(group),),
                    Heatmap(
                        "Needles found",
                        "length (tokens)",
                        "depth (%)",
                        tuple(map(short_length, columns)),
                        tuple(f"{depth:g}" for depth in rows),
                        cells,
                        "found (%)",
                        group.members,
                        (0.0, 100.0),
                        text=True,
                    ),
                )
            )
    return Figure("needles", "Needles by length and depth", ("runs",), tuple(charts))


def group_label(group: Group) -> str:
    """A group in one line of a list."""
    parts = [group.name, look_label(group.look), binary_tokens(group.tokens)]
    return formatting.text(", ".join(part for part in parts if part))


def layers_figure(runs: Sequence[Run]) -> Figure:
    """Relation loss by layer and tokens, one map a run and logged key, the newest first."""
    charts = [
        ((_run_label(run, key, run.metrics.layers),), chart)
        for index, run in _whole_first(runs)
        for key in run.metrics.layers
        if (chart := _layers_chart(run, index, key))
    ]
    title = "Relation KL by layer, in training"
    return Figure("layers", title, ("run",), tuple(charts), tall=True)


def _whole_first(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    return sorted(enumerate(runs), key=lambda pair: bool(pair[1].problems))


def _run_label(run: Run, key: str, keys: Iterable[str]) -> str:
    name = formatting.text(run.name)
    return f"{name}, {formatting.text(key)}" if len(list(keys)) > 1 else name


def _layers_chart(run: Run, index: int, key: str) -> Heatmap | None:
    rows = run.metrics.layers[key]
    logged = [i for i, values in enumerate(rows) if values]
    depth = max((len(rows[i]) for i in logged), default=0)
    stride = max(1, -(-len(logged) // _MAX_COLUMNS))
    kept = logged[::stride]
    if not depth:
        return None
    values = tuple(
        tuple(rows[i][layer] if layer < len(rows[i]) else None for i in kept)
        for layer in range(depth)
    )
    return Heatmap(
        formatting.text(key),
        "training tokens",
        "layer",
        tuple(short_number(run.metrics.tokens[i]) for i in kept),
        tuple(str(layer) for layer in range(depth)),
        values,
        "KL (nats)" if "relation" in key else "loss",
        (index,),
        log=True,
    )


def drift_figure(runs: Sequence[Run]) -> Figure:
    """Distance from the native model by layer after each stage, one chart a run."""
    charts = [
        ((formatting.text(run.name),), _drift_chart(run, index))
        for index, run in _whole_first(runs)
        if run.drift and any(model.relation_kl for model in run.drift.models)
    ]
    title = "Relation KL by layer, evaluated"
    return Figure("drift", title, ("run",), tuple(charts), tall=True)


def _drift_chart(run: Run, index: int) -> Chart:
    assert run.drift is not None
    relations = list(dict.fromkeys(r for model in run.drift.models for r in model.relation_kl))
    series = []
    for slot, model in enumerate(run.drift.models):
        for relation, dash in zip(relations, DASHES * len(relations), strict=False):
            curve = model.relation_kl.get(relation, ())
            points = tuple(
                Point(layer, value) for layer, value in enumerate(curve) if value is not None
            )
            if points:
                name = f"{formatting.text(model.name)}, {formatting.text(relation)}"
                series.append(Series(name, points, GRAY if model.role == "scaled" else slot, dash))
    y = Axis("KL (nats)", log=True)
    return Chart("Relation KL", Axis("layer"), y, tuple(series), runs=(index,))


def _by_metric(
    found: Sequence[Group], chart: Callable[[Metric], Chart | None]
) -> tuple[tuple[tuple[str], Chart], ...]:
    made = (((metric.label,), chart(metric)) for metric in metrics_of(found))
    return tuple((label, one) for label, one in made if one and one.series)


def _point(group: Group, metric: Metric, x: float) -> Point:
    estimate = group.estimates[metric.key]
    seeds = f"{estimate.seeds} seeds" if estimate.seeds > 1 else "1 seed"
    limit = f", limit={group.limit}" if group.limit is not None else ""
    note = f"{group_label(group)}, {seeds}{limit}"
    return Point(x, estimate.value, estimate.low, estimate.high, note, group.members)


def _ablations(
    found: Sequence[Group],
    apart: Callable[[Group], str],
    varied: Callable[[Group], object],
) -> list[list[Group]]:
    """Groups equal but for what is varied, where that takes at least two values."""
    sets: dict[str, list[Group]] = defaultdict(list)
    for group in found:
        sets[apart(group)].append(group)
    return [one for one in sets.values() if len(set(map(varied, one))) > 1]


def _ablation_name(one: Sequence[Group], sets: Sequence[Sequence[Group]]) -> str:
    first = one[0]
    if len(sets) == 1:
        return formatting.text(f"{first.method}, {binary_tokens(first.tokens)}")
    lr = next((v for k, v in first.settings.items() if k.endswith(".lr")), None)
    rope = f"{first.rope} x{first.factor:g}" if first.factor else first.rope
    parts = [first.method, first.model, rope, binary_tokens(first.tokens), f"lr {lr}" if lr else ""]
    return formatting.text(", ".join(part for part in parts if part))
