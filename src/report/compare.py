"""Two runs side by side in the terminal: differences of their configs, and their figures."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from src.report import formatting
from src.report.groups import device_hours, suite_figures
from src.report.labels import flat
from src.report.runs import ReportError, Run
from src.report.tables import Column, Section, Table, row, terminal
from src.results import Score, TaskResults

_NEAREST = 5


def find_run(runs: Sequence[Run], wanted: str) -> Run:
    """The run with this folder, name below `outputs` or id, or with a beginning of one of these.

    Raises ReportError if no run matches, or several do.
    """
    folder = Path(wanted).absolute()
    meanings = (
        lambda run: wanted == run.name or folder == run.folder.absolute(),
        lambda run: wanted in _names(run),
        lambda run: any(name.startswith(wanted) for name in _names(run)),
    )
    for means in meanings:
        matching = [run for run in runs if means(run)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ReportError(f"compare: {wanted!r} may be {_list(matching)}; give more of it")
    names = {name: run for run in runs for name in _names(run)}
    near = difflib.get_close_matches(wanted, names, _NEAREST, cutoff=0.4)
    chosen = list({names[name].name: names[name] for name in near}.values()) or runs[:_NEAREST]
    nearest = f"; the nearest are {_list(chosen)}" if chosen else "; there are no runs"
    raise ReportError(
        f"compare: no run {wanted!r}{nearest}. `python -m src.dashboard view=table` lists all"
    )


def compare_tables(first: Run, second: Run) -> list[RichTable | Text]:
    """All figures, and then the differences of the configs, as renderables."""
    config = _config_table(first, second)
    settings = Text(config) if isinstance(config, str) else terminal(config)
    left, right = _figures(first), _figures(second)
    rows = [(k, left.get(k, formatting.DASH), right.get(k, formatting.DASH)) for k in left | right]
    return [terminal(_table("Figures", first, second, rows)), settings]


def _names(run: Run) -> set[str]:
    identity = {run.record.run_id} if run.record else set()
    return {run.name, run.folder.name} | identity


def _list(runs: Sequence[Run]) -> str:
    names = [formatting.text(run.name) for run in runs[:_NEAREST]]
    more = f" and {len(runs) - _NEAREST} more" if len(runs) > _NEAREST else ""
    return ", ".join(names) + more


def _config_table(first: Run, second: Run) -> Table | str:
    """The differing settings, or the reason why there is no table."""
    for run in (first, second):
        if not run.config.values:
            return f"{formatting.text(run.name)}: its config cannot be read"
    left, right = flat(first.config.values), flat(second.config.values)
    differing = [k for k in left | right if left.get(k, ...) != right.get(k, ...)]
    if not differing:
        return "The configs do not differ."
    rows = [(key, _setting(left, key), _setting(right, key)) for key in differing]
    return _table("Config", first, second, rows)


def _table(title: str, first: Run, second: Run, rows: Iterable[tuple[str, str, str]]) -> Table:
    names = ("", formatting.text(first.name), formatting.text(second.name))
    lines = tuple(row(*map(formatting.text, texts)) for texts in rows)
    return Table(tuple(Column(name, "text") for name in names), (Section(lines),), title)


def _setting(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "(not set)"
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _figures(run: Run) -> dict[str, str]:
    """Figures by name; what was trained last comes first, and the native model last."""
    hours = device_hours(run)
    figures = {
        "state": run.state,
        "tokens": formatting.integer(run.tokens),
        "duration": formatting.duration(run.seconds),
        "device-hours": formatting.DASH if hours is None else f"{hours:.3g}",
    }
    for key, column in run.metrics.series.items():
        logged = [value for value in column if value is not None]
        if logged and key.startswith("loss/"):
            figures[f"last {key}"] = f"{logged[-1]:.5g}"
    if run.perplexity:
        for model in reversed(run.perplexity.models):
            for window, value in sorted(model.perplexity.items()):
                figures[f"perplexity {window:,}, {model.name}"] = formatting.perplexity(value)
    figures |= _suite_figures(run)
    if run.drift:
        for model in run.drift.models:
            if model.logit_kl is not None:
                figures[f"logit KL, {model.name}"] = f"{model.logit_kl:.4g}"
    return figures


def _suite_figures(run: Run) -> dict[str, str]:
    figures: dict[str, str] = {}
    limit = {suite.suite: _limit(suite) for suite in run.task_suites if suite}
    long_limit = limit.get("ruler", limit.get("papers", ""))
    for suite in run.task_suites:
        average = suite.final.scores.average if suite and suite.final else None
        if suite and average:
            figures |= _scores(average, f"{suite.suite} suite{_limit(suite)}")
    names = [model.name for suite in run.task_suites if suite for model in reversed(suite.models)]
    for name in dict.fromkeys(names):
        models = [
            next((model for model in suite.models if model.name == name), None) if suite else None
            for suite in run.task_suites
        ]
        for key, estimate in suite_figures(*models).items():
            label = {"short": "short average", "long": "long average"}.get(key)
            label = label or key.replace("ruler@", "long RULER ")
            mark = limit["short"] if key == "short" else long_limit
            figures[f"{label}, {name}{mark}"] = f"{estimate.value:.1f}%"
        for suite, model in zip(run.task_suites, models, strict=True):
            if suite is None or model is None:
                continue
            for task, result in model.results.items():
                shown = f"{100 * result.value:.1f}%" if result.higher_is_better else None
                figures[f"{task}, {name}{_limit(suite)}"] = shown or f"{result.value:.3f}"
    return figures


def _limit(suite: TaskResults) -> str:
    """Which of its items a suite scored, if not all."""
    half = [] if suite.split is None else [f"half={suite.split}"]
    limit = [] if suite.limit is None else [f"limit={suite.limit}"]
    return f" ({', '.join([*half, *limit])})" if half or limit else ""


def _scores(score: Score, suite: str) -> dict[str, str]:
    figures: dict[str, str] = {}
    if score.recovery is not None:
        low, high = score.interval.recovery or (None, None)
        interval = "" if low is None or high is None else f" ({low:.1f} to {high:.1f})"
        figures[f"recovery, {suite}"] = f"{score.recovery:.1f}%{interval}"
    if score.gap_closed is not None:
        figures[f"gap closed, {suite}"] = formatting.share(score.gap_closed)
    return figures
