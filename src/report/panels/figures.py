"""Sections that hold figures: ablations, layers, long context, performance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from src.report import figures, formatting, performance
from src.report.charts import Figure
from src.report.panels import PageContext, Panel

_SWEEP = "python -m src.train -m +experiment=linearard_32k +sweeps="
_EVALUATE = "python -m src.evaluate run=RUN_DIR eval="


@dataclass(frozen=True)
class Block:
    """A figure with its data, or what to type so that there is some."""

    figure: Figure
    data: dict[str, Any]
    hint: str
    command: str
    note: str = ""


def budget_panel(context: PageContext) -> Panel | None:
    """Scores against tokens; None without runs."""
    if not context.runs:
        return None
    note = (
        "Mean over seeds, bars are 95% intervals. Dotted lines: 4.25M tokens, LinearARD's own "
        "budget, and 256M tokens, the baselines'."
    )
    blocks = [
        _block(
            figures.budget_figure(context.groups),
            "No finished run has scores yet. Runs at several budgets, then their evaluation:",
            f"{_SWEEP}token_budget\n{_EVALUATE}short",
            note,
        )
    ]
    return Panel("budget", "Recovery against tokens", {"blocks": blocks}, template="figures")


def ablations_panel(context: PageContext) -> Panel | None:
    """Relations, and scaling by method; None without runs."""
    if not context.runs:
        return None
    blocks = [
        _block(
            figures.weights_figure(context.groups),
            "No two evaluated runs differ in the relations' weights alone. The ablation:",
            f"{_SWEEP}qkv_weights\n{_EVALUATE}short",
            "Runs of one colour differ in nothing but the relations' weights and the seed.",
        ),
        _block(
            figures.scaling_figure(context.groups),
            "No method was evaluated at two scaling factors. The ablation:",
            f"{_SWEEP}scaling_factor\n{_EVALUATE}short",
            "Colour is the method, the dash is the kind of scaling.",
        ),
    ]
    return Panel("ablations", "Ablations", {"blocks": blocks}, template="figures")


def layers_panel(context: PageContext) -> Panel | None:
    """Relation KL by layer, while training and as evaluated; None without runs."""
    if not context.runs:
        return None
    blocks = [
        _block(
            figures.layers_figure(context.runs),
            "No run logged a loss by layer. Runs with relation distillation do:",
            "python -m src.train +experiment=linearard_32k",
            "The weighted loss of each layer as logged, colour on a logarithmic scale.",
        ),
        _block(
            figures.drift_figure(context.runs),
            "No run's drift was measured yet:",
            f"{_EVALUATE}drift",
            "KL from the native model's relations after each stage; grey is the scaled model.",
        ),
    ]
    return Panel("layers", "Layers", {"blocks": blocks}, template="figures")


def long_panel(context: PageContext) -> Panel | None:
    """RULER by length, needles by length and depth; None without runs."""
    if not context.runs:
        return None
    blocks = [
        _block(
            figures.ruler_figure(context.groups),
            "No finished run was evaluated on RULER yet:",
            f"{_EVALUATE}long",
            "Bars are 95% intervals. Grey: the native and the merely scaled model.",
        ),
        _block(
            figures.needle_figure(context.groups),
            "No finished run was evaluated on needles by depth yet:",
            f"{_EVALUATE}long",
            "Mean over seeds. Depth 0 is the start of the text.",
        ),
    ]
    return Panel("long", "Long context", {"blocks": blocks}, template="figures")


@dataclass(frozen=True)
class ResultTable:
    """A benchmark's result file as text."""

    name: str
    about: str
    command: str
    problem: str
    rows: tuple[tuple[str, str, str, str], ...]


def performance_panel(context: PageContext) -> Panel | None:
    """Kernel and step, as the repository's benchmarks measured them."""
    kernel, step = performance.performance_figures(context.results)
    note = "Measured by the repository's benchmarks; the filters above do not apply."
    blocks = [
        _block(
            kernel,
            "No figures of the kernel were found. They are made on a GPU by:",
            "python -m kernels.bench --out benchmarks/results/kernel.json",
            note,
        ),
        _block(
            step,
            "No figures of a training step were found. They are made on a GPU by:",
            "python -m benchmarks.step",
            note,
        ),
    ]
    tables = [_table(result) for result in context.results]
    values = {"blocks": blocks, "tables": tables}
    return Panel("performance", "Kernel and step performance", values, template="performance")


def _table(result: performance.Result) -> ResultTable:
    content = result.content
    if content is None:
        return ResultTable(formatting.text(result.name), "", "", result.problem, ())
    about = [part for part in (content.device, formatting.commit(content.commit, False)) if part]
    rows = tuple(
        (
            formatting.text(row.name),
            formatting.DASH if row.value is None else f"{row.value:.5g}",
            formatting.text(row.unit) if row.unit else "",
            formatting.text(", ".join(f"{k} {v}" for k, v in row.settings.items())),
        )
        for row in content.rows
    )
    name, command = formatting.text(result.name), formatting.text(content.command)
    return ResultTable(name, formatting.text(", ".join(about)), command, "", rows)


def _block(figure: Figure, hint: str, command: str, note: str) -> Block:
    return Block(figure, figure.data(), hint, command, note)
