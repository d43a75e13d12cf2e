"""Relation KL by layer: while training, and as evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from src.report import formatting
from src.report.charts import DASHES, GRAY, Axis, Chart, Heatmap, Point, Series, short_number
from src.report.figures.base import EVALUATE, TRAIN, Choice, Figure, numbered
from src.report.groups import ReportData
from src.report.metrics import Metrics
from src.report.runs import Run
from src.results import DriftResults

_MAX_COLUMNS = 24


def _layers(data: ReportData) -> Iterator[Choice]:
    """By layer and tokens, one map for each run and logged key, the newest first."""
    for index, run in _faulty_last(data.runs):
        for key in run.metrics.layers:
            name = data.labels[index]
            label = f"{name}, {formatting.text(key)}" if len(run.metrics.layers) > 1 else name
            if chart := layer_map(run.metrics, key, runs=(index,)):
                yield (label,), chart


def _faulty_last(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    return sorted(enumerate(runs), key=lambda pair: bool(pair[1].problems))


def layer_map(metrics: Metrics, key: str, *, runs: tuple[int, ...] = ()) -> Heatmap | None:
    """A metric with one value for each layer, against training tokens; None if none is logged.

    Steps are thinned evenly to at most 24.
    """
    rows = metrics.layers[key]
    logged = [i for i, values in enumerate(rows) if values]
    depth = max((len(rows[i]) for i in logged), default=0)
    kept = logged[:: max(1, -(-len(logged) // _MAX_COLUMNS))]
    if not depth:
        return None
    return Heatmap(
        "training tokens",
        "layer",
        numbered(short_number(metrics.tokens[i]) for i in kept),
        tuple(str(layer) for layer in range(depth)),
        tuple(
            tuple(rows[i][layer] if layer < len(rows[i]) else None for i in kept)
            for layer in range(depth)
        ),
        "KL (nats)" if "relation" in key else "loss",
        runs,
        log=True,
    )


def _distance(data: ReportData) -> Iterator[Choice]:
    """Distance from the native model by layer after each stage, one chart for each run."""
    for index, run in _faulty_last(data.runs):
        if run.drift and any(model.relation_kl for model in run.drift.models):
            y = Axis("KL (nats)", log=True)
            series = tuple(_distance_lines(run.drift))
            chart = Chart(Axis("layer"), y, series, of_runs=(index,))
            yield (data.labels[index],), chart


def _distance_lines(report: DriftResults) -> Iterator[Series]:
    relations = list(dict.fromkeys(r for model in report.models for r in model.relation_kl))
    for slot, model in enumerate(report.models):
        for place, relation in enumerate(relations):
            curve = model.relation_kl.get(relation, ())
            points = tuple(
                Point(layer, value) for layer, value in enumerate(curve) if value is not None
            )
            if points:
                name = f"{formatting.text(model.name)}, {formatting.text(relation)}"
                color = GRAY if model.role == "scaled" else slot
                yield Series(name, points, color, DASHES[place % len(DASHES)])


FIGURES = (
    Figure(
        "layers",
        "Relation KL by layer, in training",
        "layers",
        ("run",),
        _layers,
        "The weighted loss of each layer as logged, colour on a logarithmic scale.",
        "No run logged a loss by layer. Runs with relation distillation do:",
        f"{TRAIN} +experiment=linearard_32k",
        of_one_run=True,
        tall=True,
    ),
    Figure(
        "drift",
        "Relation KL by layer, evaluated",
        "layers",
        ("run",),
        _distance,
        "KL from the native model's relations after each stage; grey is the scaled model.",
        "No run's drift was measured yet:",
        f"{EVALUATE}drift",
        of_one_run=True,
        tall=True,
    ),
)
