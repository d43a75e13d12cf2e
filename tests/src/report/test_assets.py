"""The page in a real browser: the scripts draw, react, and nothing else runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.report import build

MakeRun = Callable[..., Path]

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1280,1600",
    "--virtual-time-budget=5000",
)

INJECTION = '<img src=x onerror="window.injected=1"><script>window.injected=1</script>'
LINK = '<a href="https://example.org/">link</a>'


def browse(page: Path, *flags: str) -> tuple[str, str]:
    """The document after its scripts ran, and the lines of the console."""
    assert CHROMIUM is not None
    profile = page.parent / "profile"
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


def probe(page: Path, script: str, *flags: str) -> Any:
    """What `script`, a function body run after the page's own scripts, returns."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    # A timer, not a promise: the charts are drawn when the browser first lays out the page.
    run = f"document.title = 'probe:' + JSON.stringify((() => {{ {script} }})())"
    probed = page.with_name("probed.html")
    probed.write_text(
        html.replace("</body>", f"<script>setTimeout(() => {{ {run} }}, 1500)</script></body>")
    )
    document, console = browse(probed, *flags)
    found = re.search(r"<title>probe:(.*?)</title>", document, re.DOTALL)
    assert found, console
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@pytest.fixture
def page(outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]) -> Path:
    """Two stages and an evaluation, an older run, and one whose texts attack the page."""

    def rows(stage: str) -> list[dict[str, Any]]:
        ard = [
            {
                "stage": "ard",
                "loss/total": 1 / i,
                "loss/relation/qq": 0.6 / i,
                "loss/relation/kk": 0.4 / i,
            }
            for i in range(1, 11)
        ]
        later = [{"stage": stage, "loss/total": 3.0, "loss/lm": 3.0} for _ in range(5)]
        return [
            {"step": i, "tokens": 512 * i, "lr": 1e-3, "grad_norm": 1.0 + i % 3, **row}
            for i, row in enumerate([*ard, *later], start=1)
        ]

    make_run("new", metrics=rows("cpt"), evaluation=evaluation)
    make_run("old", metrics=rows("cpt"), started_at="2025-11-01T00:00:00Z")
    evaluation["models"][3]["name"] = LINK
    texts = dict.fromkeys(("experiment", "method", "command", "error"), INJECTION)
    hostile = INJECTION.replace("/", "")
    make_run(hostile, metrics=rows(LINK), evaluation=evaluation, started_at="2026-01-01", **texts)
    return build(outputs, outputs / "dashboard" / "index.html")


def test_charts_are_drawn_under_the_policy(page: Path) -> None:
    screenshot = page.with_name("page.png")
    document, console = browse(page, f"--screenshot={screenshot}")
    assert console == ""  # a script that the policy stops is told there
    charts = re.findall(r'<div class="chart js-plotly-plot" data-\w+="([^"]+)"', document)
    assert set(charts) == {"perplexity-0", "perplexity-1", "total", "parts", "lr", "grad_norm"}
    assert document.count('class="main-svg"') >= len(charts)
    assert screenshot.read_bytes().startswith(b"\x89PNG")


def test_texts_of_runs_stay_text_even_without_the_policy(page: Path) -> None:
    script = """
      return {
        injected: typeof window.injected, images: document.querySelectorAll("img").length,
        links: document.querySelectorAll('a[href^="http"], svg a').length,
        legend: document.querySelector('[data-figure="perplexity-0"] .legend').textContent,
        stage: document.querySelector('[data-curve="lr"] .annotation').textContent,
      };
    """
    seen = probe(page, script)
    assert (seen["injected"], seen["images"], seen["links"]) == ("undefined", 0, 0)
    assert LINK in seen["legend"]
    assert seen["stage"] == f"ard | {LINK}, ard | cpt"


def test_the_curves_follow_their_controls(page: Path) -> None:
    script = """
      const plot = (name) => document.querySelector(`[data-curve="${name}"]`);
      const state = (name) => ({
        lines: plot(name).data.length, axis: plot(name).layout.yaxis.type,
        stages: plot(name).layout.shapes.map((shape) => shape.x0),
      });
      const set = (input, change) => { change(input); input.dispatchEvent(new Event("input")); };
      const seen = [state("total")];
      set(document.querySelector('[data-run="0"]'), (box) => { box.checked = false; });
      seen.push(state("total"), state("parts"));
      set(document.getElementById("smoothing"), (slider) => { slider.value = "0.5"; });
      seen.push(state("total"), state("lr"));
      const [logged, smooth] = plot("total").data;
      seen.push([logged.y.slice(0, 2), smooth.y.slice(0, 2), smooth.y[10], smooth.y[11]]);
      set(document.getElementById("log-loss"), (box) => { box.checked = false; });
      seen.push(state("total").axis);
      return seen;
    """
    both, one, parts, smoothed, rate, values, axis = probe(page, script)
    assert both == {"lines": 2, "axis": "log", "stages": [5120]}
    assert one == {"lines": 1, "axis": "log", "stages": [5120]}
    assert parts["lines"] == 3
    assert smoothed["lines"] == 2
    assert rate["lines"] == 1
    assert axis == "linear"
    logged, smooth, gap, after = values
    assert logged == [1, 0.5]
    assert smooth == pytest.approx([1, (0.5 * 0.5 * 1 + 0.5 * 0.5) / 0.75])
    assert gap is None
    assert after == pytest.approx(3)


def test_the_filter_and_the_theme(page: Path) -> None:
    script = """
      const filter = document.getElementById("run-filter");
      filter.value = "OLD finished";
      filter.dispatchEvent(new Event("input"));
      const rows = [...document.querySelectorAll("#run-list tbody tr")];
      const background = () => getComputedStyle(document.body).backgroundColor;
      const grid = () => document.querySelector('[data-curve="lr"]').layout.xaxis.gridcolor;
      const before = [background(), grid()];
      document.getElementById("theme").click();
      return {
        shown: rows.filter((row) => !row.hidden).length,
        count: document.getElementById("run-count").value,
        before, after: [background(), grid()], label: document.getElementById("theme").textContent,
      };
    """
    seen = probe(page, script)
    assert (seen["shown"], seen["count"]) == (1, "1 of 3")
    assert seen["before"] == ["rgb(255, 255, 255)", "rgb(226, 229, 234)"]
    assert seen["after"] == ["rgb(20, 22, 26)", "rgb(44, 48, 56)"]
    assert seen["label"] == "Light"


def test_a_phone_never_scrolls_sideways(page: Path) -> None:
    frame = page.with_name("phone.html")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    report = "setTimeout(() => parent.postMessage(document.documentElement.scrollWidth, '*'), 1500)"
    page.with_name("inner.html").write_text(
        html.replace("</body>", f"<script>{report}</script></body>")
    )
    frame.write_text(
        "<!DOCTYPE html><title>none</title>"
        "<script>addEventListener('message', (event) => { document.title = event.data; })</script>"
        '<iframe src="inner.html" width="360" height="3000" style="border:0"></iframe>'
    )
    document, _ = browse(frame)
    width = re.search(r"<title>(\d+)</title>", document)
    assert width, document[:200]
    assert int(width[1]) <= 360
