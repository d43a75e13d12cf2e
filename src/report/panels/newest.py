"""The newest result in four figures."""

from __future__ import annotations

from dataclasses import dataclass

from src.report import formatting
from src.report.groups import headline_window
from src.report.panels import PageContext, Panel
from src.report.runs import Run
from src.report.runs_table import run_facts
from src.results import PerplexityModel, PerplexityResults, PerplexityScore


@dataclass(frozen=True)
class Card:
    """One figure; `meter` from 0 to 1 draws a bar below it."""

    label: str
    value: str
    note: str
    meter: float | None = None


def newest_panel(context: PageContext) -> Panel | None:
    """Cards of the newest finished run evaluated at the headline window; None without runs."""
    if not context.runs:
        return None
    for index, run in enumerate(context.runs):
        report = run.perplexity
        window = headline_window(report, context.window) if report else None
        if run.state == "finished" and report and window:
            return _panel(index, run, report, window)
    return Panel("newest", "Newest result", {"row": None, "window": context.window})


def _panel(index: int, run: Run, report: PerplexityResults, window: int) -> Panel:
    values = {
        "run": index,
        "row": run_facts(run, window),
        "cards": _cards(report, window),
        "window": window,
        "dataset": formatting.text(report.dataset.name),
        "documents": len(report.dataset.documents),
    }
    return Panel("newest", "Newest result", values)


def _cards(report: PerplexityResults, window: int) -> list[Card]:
    restored = report.final
    score = restored.score(window) if restored else PerplexityScore()
    gap, recovery = score.gap_closed, formatting.percent(score.recovery)
    return [
        Card("Native", _at(report.native, window), "the original model"),
        Card("Scaled", _at(report.scaled, window), "after scaling, untrained"),
        Card("Restored", _at(restored, window), _student_note(restored)),
        Card("Gap closed", formatting.share(gap), f"recovery {recovery}", _meter(gap)),
    ]


def _at(model: PerplexityModel | None, window: int) -> str:
    return formatting.perplexity(model.perplexity.get(window) if model else None)


def _student_note(model: PerplexityModel | None) -> str:
    if model is None:
        return "no trained model evaluated"
    return "after training" if model.name == "restored" else formatting.text(model.name)


def _meter(gap: float | None) -> float | None:
    return None if formatting.share(gap) == formatting.DASH or gap is None else min(1, max(0, gap))
