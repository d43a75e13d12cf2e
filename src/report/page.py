"""Renders the page: one file with styles, scripts and data inside, which loads nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from src.report import formatting
from src.report.charts import binary_tokens
from src.report.noise import Estimate
from src.report.panels import PageContext, Panel
from src.report.panels.comparison import comparison_panel
from src.report.panels.curves import curves_panel
from src.report.panels.figures import figures_panel, performance_panel
from src.report.panels.overview import answer_panel, headline_panel, newest_panel, start_panel
from src.report.panels.runs import runs_panel
from src.report.runs import ReportError, count_corrupt
from src.report.runs_table import page_data
from src.run_folder import write_whole


@dataclass(frozen=True)
class Tab:
    """Panels that the page shows together."""

    name: str
    title: str
    panels: tuple[Callable[[PageContext], Panel | None], ...]


TABS = (
    Tab("answer", "Answer", (start_panel, answer_panel, newest_panel)),
    Tab("scores", "All scores", (headline_panel,)),
    Tab("settings", "Settings", (figures_panel("settings", "What a setting changes"),)),
    Tab("long", "Long context", (figures_panel("long", "Long context"),)),
    Tab("training", "Training", (curves_panel, figures_panel("layers", "Layers"))),
    Tab("perplexity", "Perplexity", (comparison_panel,)),
    Tab("speed", "Speed", (performance_panel,)),
    Tab("runs", "Runs", (runs_panel,)),
)
"""From top to bottom. A panel that has nothing to show returns None."""

_HERE = Path(__file__).parent
_PLOTLY = functools.cache(get_plotlyjs)


@dataclass(frozen=True)
class Live:
    """A page that asks its server for news every so many seconds and has this version now."""

    refresh_seconds: int
    version: str


def write_page(context: PageContext) -> Path:
    """Write the page atomically to `context.target`; raises ReportError if that cannot be done."""
    target = context.target
    if target.is_dir():
        raise ReportError(f"target_path={target}: this is a folder; name a file such as index.html")
    page = render(context)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, page.encode())
    except OSError as error:
        raise ReportError(f"target_path={target}: cannot be written ({error.strerror})") from error
    return target


def render(context: PageContext, live: Live | None = None) -> str:
    """The page as HTML; `live` is given by a server."""
    built = [(tab, [panel for build in tab.panels if (panel := build(context))]) for tab in TABS]
    tabs = [(tab, panels) for tab, panels in built if panels]
    scripts = _scripts([panel for _, panels in tabs for panel in panels], live)
    template = _environment().get_template("page.html")
    return template.render(
        tabs=tabs,
        run_count=len(context.runs),
        corrupt_count=count_corrupt(context.runs),
        synthetic_count=sum(run.is_synthetic for run in context.runs),
        now=context.now,
        data=page_data(context, context.link),
        live=live,
        style=Markup(_asset("style.css")),  # noqa: S704  # a file of ours
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # ours, and Plotly
        script_hashes=[_csp_hash(script) for script in scripts],
    )


def _scripts(panels: Sequence[Panel], live: Live | None) -> list[str]:
    names = ["state.js", "base.js", "drawer.js", "filters.js", "figures.js", "marks.js"]
    names += [panel.script for panel in panels if panel.script]
    names += ["sort.js", "tabs.js"] + (["live.js"] if live else [])
    return [_PLOTLY(), *map(_asset, names)]


def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text("utf-8")


def _csp_hash(script: str) -> str:
    """The source expression that lets this script run, and no other, under the page's policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _figure(estimate: Estimate, unit: str) -> str:
    """A percentage with one decimal, or a perplexity."""
    return f"{estimate.value:.1f}" if unit else formatting.perplexity(estimate.value)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"line": formatting.text, "budget": binary_tokens, "figure": _figure}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment
