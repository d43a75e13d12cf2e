"""The panels at the top: the first commands, the answer, all scores, the newest result."""

from __future__ import annotations

from typing import Any

from src.report import formatting
from src.report.figures.answer import matrices
from src.report.groups import headline_window
from src.report.headline import headline, missing_suites
from src.report.panels import PageContext, Panel
from src.report.panels.figures import figure_blocks
from src.report.runs_table import run_facts
from src.results import PerplexityResults, PerplexityScore

_ALL_SHOWN = 12  # so few rows are shown with all their variants


def start_panel(context: PageContext) -> Panel | None:
    """What to type when there is no run yet; None once there is one."""
    return None if context.runs else Panel("start", "No runs yet")


def answer_panel(context: PageContext) -> Panel | None:
    """Which method at which budget: matrices by metric, beside a chart; None without runs."""
    if not context.runs:
        return None
    drawn = [matrix for matrix, _ in matrices(context.groups)]
    ((figure, data),) = figure_blocks("answer", context)
    values = {
        "matrices": drawn,
        "figure": figure,
        "data": data,
        "missing": missing_suites(context.groups),
        "unfinished": sum(run.state != "finished" for run in context.runs),
    }
    return Panel("answer", "Which method, at which budget?", values, script="answer.js")


def headline_panel(context: PageContext) -> Panel | None:
    """The table of methods at their budgets; None without runs."""
    if not context.runs:
        return None
    values = {
        "table": headline(context.groups),
        "all_shown": len(context.groups) <= _ALL_SHOWN,
        "unfinished": sum(run.state != "finished" for run in context.runs),
    }
    return Panel("headline", "All scores", values, script="headline.js")


def newest_panel(context: PageContext) -> Panel | None:
    """Cards of the newest finished run evaluated at the headline window; None without runs."""
    if not context.runs:
        return None
    values: dict[str, Any] = {"row": None, "window": context.window}
    for index, run in enumerate(context.runs):
        report = run.perplexity
        window = headline_window(report, context.window) if report else None
        if run.state == "finished" and report and window:
            values = {
                "run": index,
                "row": run_facts(run, window),
                "label": context.labels[index],
                "cards": _cards(report, window),
                "window": window,
                "dataset": formatting.text(report.dataset.name),
                "documents": len(report.dataset.documents),
            }
            break
    return Panel("newest", "Newest result", values)


def _cards(report: PerplexityResults, window: int) -> list[dict[str, Any]]:
    """Four figures, each with a label and a note; `meter` from 0 to 1 draws a bar below one."""
    restored = report.final
    score = restored.score(window) if restored else PerplexityScore()
    note = "no trained model evaluated"
    if restored:
        note = "after training" if restored.name == "restored" else formatting.text(restored.name)
    models = [
        ("Native", report.native, "the original model"),
        ("Scaled", report.scaled, "after scaling, untrained"),
        ("Restored", restored, note),
    ]
    cards: list[dict[str, Any]] = []
    for label, model, about in models:
        value = formatting.perplexity(model.perplexity.get(window) if model else None)
        cards.append({"label": label, "value": value, "note": about, "meter": None})
    gap, recovery = formatting.share(score.gap_closed), formatting.percent(score.recovery)
    meter = None if gap == formatting.DASH else min(1, max(0, score.gap_closed or 0))
    note = f"recovery {recovery}"
    return [*cards, {"label": "Gap closed", "value": gap, "note": note, "meter": meter}]
