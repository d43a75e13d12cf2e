"""Renders the page: one file with styles, scripts and data inside, which loads nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from src.report import formatting
from src.report.drawer import page_data
from src.report.panels import PageContext, Panel
from src.report.panels.comparison import comparison_panel
from src.report.panels.curves import curves_panel
from src.report.panels.figures import figures_panel, performance_panel
from src.report.panels.headline import headline_panel
from src.report.panels.newest import newest_panel
from src.report.panels.runs import runs_panel
from src.report.panels.start import start_panel
from src.report.performance import Result
from src.report.runs import ReportError, Run, count_corrupt

PANELS: tuple[Callable[[PageContext], Panel | None], ...] = (
    start_panel,
    headline_panel,
    newest_panel,
    figures_panel("budget", "Recovery against tokens"),
    figures_panel("ablations", "Ablations"),
    figures_panel("long", "Long context"),
    curves_panel,
    figures_panel("layers", "Layers"),
    comparison_panel,
    performance_panel,
    runs_panel,
)
"""The panels from top to bottom. One that has nothing to show returns None."""

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Live:
    """A page that asks its server for news every so many seconds and has this version now."""

    refresh_seconds: int
    version: str


def write_page(
    runs: Sequence[Run],
    target: Path,
    *,
    window: int | None = None,
    results: Sequence[Result] = (),
) -> Path:
    """Write the page of `runs` to `target` atomically; returns `target`.

    `window` is the headline window in tokens (`table.headline_window`), `results` are those of
    benchmarks.

    Raises:
        ReportError: `target` is a folder, or cannot be written.
    """
    if target.is_dir():
        raise ReportError(f"target_path={target}: this is a folder; name a file such as index.html")
    page = render(runs, target, window=window, results=results, now=datetime.now(UTC))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, page.encode())
    except OSError as error:
        raise ReportError(f"target_path={target}: cannot be written ({error.strerror})") from error
    return target


def render(
    runs: Sequence[Run],
    target: Path,
    *,
    window: int | None = None,
    results: Sequence[Result] = (),
    now: datetime,
    live: Live | None = None,
) -> str:
    """The page as HTML; `target` is where it will lie, `now` the time it shows."""
    context = PageContext(
        runs=tuple(runs), window=window, results=tuple(results), target=target, now=now
    )
    panels = [panel for build in PANELS if (panel := build(context))]
    scripts = _scripts(panels, live)
    return (
        _environment()
        .get_template("page.html")
        .render(
            panels=panels,
            run_count=len(runs),
            corrupt_count=count_corrupt(runs),
            now=now,
            data=page_data(runs, context.link, window),
            refresh_seconds=live.refresh_seconds if live else None,
            version=live.version if live else None,
            style=Markup(_asset("style.css")),
            scripts=[Markup(script) for script in scripts],
            script_hashes=[_csp_hash(script) for script in scripts],
        )
    )


def _scripts(panels: Sequence[Panel], live: Live | None) -> list[str]:
    names = ["base.js", "drawer.js", "filters.js", "figures.js"]
    names += [panel.script for panel in panels if panel.script]
    names += ["live.js"] if live else []
    return [_plotly(), *map(_asset, names)]


@functools.cache
def _plotly() -> str:
    return get_plotlyjs()


def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text("utf-8")


def _csp_hash(script: str) -> str:
    """The source expression that lets this script run, and no other, under the page's policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["line"] = formatting.text
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _replace(target: Path, content: bytes) -> None:
    """Replace the page atomically: readers see the old page or the new one."""
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        staged.write_bytes(content)
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
