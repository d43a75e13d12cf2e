"""The page in a real browser: panels draw and react, ask for nothing, and run no injection."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from src.report.figures import FIGURES
from src.report.files import read_results
from src.report.groups import ReportData, group_runs
from src.report.headline import headline
from src.report.page import write_page
from src.report.panels import PageContext
from src.report.runs import read_runs
from tests.conftest import ROOT
from tests.src.report import synthetic
from tests.src.report.browser import EXECUTABLE, MISSING, Page, browser

MakeRun = Callable[..., Path]

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason=MISSING)

# Screenshots are left here to be looked at; docs/dashboard.md says how its own are made.
ARTIFACTS = ROOT / ".artifacts" / "dashboard"
INJECTION = synthetic.INJECTION
LINK = '<a href="https://example.org/">link</a>'
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


class Window:
    """A browser that all tests of this file share; each opens a page of its own in it."""

    def __init__(self, runner: asyncio.Runner, tab: Page) -> None:
        self._runner = runner
        self._tab = tab

    def see(self, page: Path, script: str, **options: Any) -> Any:
        """What `script` returns on the page, which must have said nothing and asked for nothing."""

        async def look(tab: Page) -> Any:
            return await tab.run(script)

        return self.visit(page, look, **options)

    def visit(
        self,
        page: Path,
        look: Callable[[Page], Awaitable[Any]],
        *,
        size: tuple[int, int] = (1280, 1600),
        phone: bool = False,
        scheme: str = "light",
        tabs: tuple[str, ...] = (),
        choices: str = "",
    ) -> Any:
        """What `look` finds on the page; `tabs` as in `Page.see`, `choices` end the address."""
        tab = self._tab

        async def run() -> Any:
            await tab.open("about:blank")
            tab.console.clear()
            tab.requests.clear()
            await tab.size(*size, phone=phone)
            await tab.scheme(scheme)
            await tab.open(page.as_uri() + choices)
            if not choices:
                await tab.see(*tabs)
            found = await look(tab)
            assert tab.console == []
            # Pictures that Plotly makes in the page itself are no requests.
            own = ("data:", "blob:")
            assert [url for url in tab.requests if not url.startswith(own)] == [page.as_uri()]
            return found

        return self._runner.run(run())


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    """The browser, gone after the last test."""
    with asyncio.Runner() as runner:
        started = browser()
        yield Window(runner, runner.run(started.__aenter__()))
        runner.run(started.__aexit__(None, None, None))


def without_policy(page: Path) -> Path:
    """A copy that would run injected scripts, if any were injected."""
    copy = page.with_name("open.html")
    copy.write_text(POLICY.sub("", page.read_text("utf-8")))
    return copy


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
    return write_page(
        PageContext(runs=tuple(read_runs(outputs)), target=outputs / "dashboard" / "index.html")
    )


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two hundred runs: corrupt, unfinished and hostile ones among them."""
    outputs = tmp_path_factory.mktemp("two-hundred") / "outputs"
    synthetic.write(outputs)
    results = read_results(ROOT / "benchmarks" / "results")
    return write_page(
        PageContext(
            runs=tuple(read_runs(outputs)),
            target=outputs / "dashboard" / "index.html",
            results=tuple(results),
        )
    )


PANELS = [
    *("answer", "newest", "headline", "settings", "long", "curves", "layers", "comparison"),
    *("performance", "runs"),
]
CHARTS = {figure.name for figure in FIGURES if not figure.each}
CHARTS |= {"setting-ard.lr", "setting-seed", "total", "parts", "lr", "grad_norm"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "scheme"),
    [
        ("desktop", "light"),
        ("phone", "dark"),
        # Width and colours have nothing to do with each other: both are seen once above.
        pytest.param("desktop", "dark", marks=pytest.mark.thorough),
        pytest.param("phone", "light", marks=pytest.mark.thorough),
    ],
)
def test_every_panel_of_two_hundred_runs_renders(
    window: Window, two_hundred: Path, device: str, scheme: str
) -> None:
    phone = device == "phone"
    size = (390, 844) if phone else (1440, 900)

    async def look(tab: Page) -> dict[str, Any]:
        await tab.whole(ARTIFACTS / f"{device}-{scheme}.png")
        return await tab.run(
            """
            const all = (selector) => [...document.querySelectorAll(selector)];
            const card = all(".best-card").find((one) => one.textContent.startsWith("4.25M"));
            const best = {
              text: [...card.children].map((part) => part.textContent),
              bottom: card.getBoundingClientRect().bottom,
            };
            const wide = [];
            for (const tab of all("[data-tab]")) {
              tab.click();
              const tables = all("main table").filter((table) => table.checkVisibility());
              for (const table of tables) {
                if (table.getBoundingClientRect().right > innerWidth) wide.push(tab.textContent);
              }
            }
            const drawn = (chart) => chart.querySelector(".main-svg") && !chart.matches(".empty");
            const charts = all("[data-chart], [data-curve]").filter(drawn);
            return {
              best, wide,
              panels: all("main section").map((section) => section.id),
              drawn: charts.map((chart) => chart.dataset.chart ?? chart.dataset.curve),
              marks: document.querySelectorAll("#headline-table td[data-mark]").length,
              injected: typeof window.injected,
              images: document.querySelectorAll("main img").length,
              width: document.documentElement.scrollWidth,
              background: getComputedStyle(document.body).backgroundColor,
              corrupt: document.querySelectorAll("#run-list .badge.corrupt").length,
              faults: document.querySelectorAll("#run-list th .fault").length,
            };
            """
        )

    seen = window.visit(two_hundred, look, size=size, phone=phone, scheme=scheme)
    # The answer is in the first screen.
    title, answer, near = seen["best"]["text"]
    assert (title, near) == ("4.25M tokens", "≈ LinearARD, ABF x8")
    assert answer.startswith("LinearARD, YaRN x8")
    assert seen["best"]["bottom"] < size[1]
    assert seen["wide"] == []
    assert seen["panels"] == PANELS
    assert set(seen["drawn"]) == CHARTS
    assert seen["marks"] > 100
    assert (seen["injected"], seen["images"]) == ("undefined", 0)
    assert seen["width"] <= size[0]
    assert seen["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    assert (seen["corrupt"], seen["faults"]) == (5, 11)  # 10 damaged, and one run's own error
    assert (ARTIFACTS / f"{device}-{scheme}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_filters_apply_to_all_panels(window: Window, two_hundred: Path) -> None:
    script = """
      const wait = () => new Promise((done) => setTimeout(done, 300));
      const choose = async (key, value) => {
        const select = document.querySelector(`[data-filter="${key}"]`);
        select.value = value;
        select.dispatchEvent(new Event("change"));
        await wait();
      };
      const plot = (name) => document.querySelector(`[data-chart="${name}"]`);
      const all = (selector) => [...document.querySelectorAll(selector)];
      const visible = (selector) => all(selector).filter((element) => !element.hidden);
      const shown = "#headline-table tbody:not([hidden])";
      const texts = (selector) => all(selector).map((element) => element.textContent.trim());
      const matrix = ".matrix:not([hidden]) tr.method:not([hidden])";
      const state = () => ({
        count: document.getElementById("filter-count").value,
        blocks: texts(`${shown} .family`),
        methods: [...new Set(texts(`${shown} .method:not([hidden]) th button`))],
        matrix: all(matrix).map((row) => row.dataset.name),
        best: texts("#best .best-card strong"),
        lines: (plot("budget").data ?? []).map((trace) => `${trace.name} ${trace.x.length}`),
        listed: visible("#run-list tbody tr").length,
        evaluations: visible("#comparison details").length,
        curves: visible(".picker label").length,
        address: location.hash,
      });
      const seen = {all: state()};
      await choose("sweep", "token_budget");
      seen.sweep = state();
      await choose("method", "Long-CPT");
      seen.both = state();
      document.getElementById("filters").reset();
      await wait();
      await choose("model", "smollm2_135m");
      seen.model = state();
      document.getElementById("filters").reset();
      await wait();
      await choose("scaling", "YaRN x8");
      seen.scaling = state();
      document.getElementById("filters").reset();
      await wait();
      seen.again = state();
      return seen;
    """
    seen = window.see(two_hundred, script, tabs=("answer",))
    assert seen["all"]["count"] == "200 runs"
    assert seen["all"]["lines"][0] == "LinearARD, linear x8 7"
    assert seen["all"]["best"][3] == "LinearARD, YaRN x8"
    assert seen["again"] == seen["all"]
    sweep = seen["sweep"]
    assert sweep["count"] == "42 of 200 runs"
    assert (sweep["listed"], sweep["evaluations"], sweep["curves"]) == (42, 42, 42)
    assert sweep["methods"] == ["LinearARD", "LongReD-C", "Long-CPT"]
    linear = [f"{method}, linear x8" for method in sweep["methods"]]
    assert sweep["matrix"] == linear
    assert sweep["best"] == ["LinearARD, linear x8"] * 7
    assert sweep["lines"] == [f"{name} 7" for name in linear]
    assert sweep["address"] == "#sweep=token_budget"
    assert seen["both"]["lines"] == ["Long-CPT, linear x8 7"]
    assert seen["both"]["count"] == "14 of 200 runs"
    assert seen["both"]["best"] == []  # alone, nothing is the best
    assert seen["both"]["address"] == "#sweep=token_budget&method=Long-CPT"
    assert seen["model"]["blocks"] == ["smollm2_135m, linear x4 limit=200"]
    assert len(seen["model"]["lines"]) == 6
    assert seen["scaling"]["matrix"] == ["LinearARD, YaRN x8", "Long-CPT, YaRN x8"]


@pytest.mark.slow
def test_an_address_brings_back_every_choice(window: Window, two_hundred: Path) -> None:
    """Filters, tab, metric, sorted column, search, ticked variants and the open run."""
    metric = quote('["llama2_7b to 32K","RULER at 16,384"]')
    choices = f"#sweep=token_budget&show-budget={metric}&sort=4.25M:up&variants=true&theme=dark"

    async def look(tab: Page) -> dict[str, Any]:
        script = """
          const shown = document.querySelector(".matrix:not([hidden])");
          return {
            metric: shown.querySelector("caption").textContent.trim(),
            rows: [...shown.querySelectorAll(".method:not([hidden])")]
              .map((row) => row.dataset.name),
            sorted: shown.querySelector("[aria-sort=ascending]").textContent,
            count: document.getElementById("filter-count").value,
            variants: document.getElementById("variants").checked,
            theme: document.documentElement.dataset.theme,
            tab: document.querySelector(".rail [aria-current]").textContent,
            drawer: document.querySelector("#drawer[open] .lead strong")?.textContent ?? null,
          };
        """
        seen = {"first": await tab.run(script)}
        await tab.run(
            """
            document.querySelector('[data-tab="runs"]').click();
            document.querySelector("#run-list tr:not([hidden]) button.open").click();
            """
        )
        seen["opened"] = await tab.run("return location.hash")
        await tab.run('document.getElementById("drawer").close(); history.back();')
        await asyncio.sleep(0.3)
        seen["back"] = await tab.run(script)
        await tab.run(f"location.hash = {json.dumps(seen['opened'])}")
        await asyncio.sleep(0.3)
        seen["again"] = await tab.run(script)
        return seen

    seen = window.visit(two_hundred, look, choices=choices)
    first = seen["first"]
    assert first["metric"].split(" (%)")[0] == "RULER at 16,384"
    assert first["rows"][-1] == "LinearARD, linear x8"  # the best comes last, sorted upwards
    assert first["sorted"] == "4.25M"
    assert (first["count"], first["variants"]) == ("42 of 200 runs", True)
    assert (first["theme"], first["tab"], first["drawer"]) == ("dark", "Answer", None)
    assert "tab=runs" in seen["opened"]
    assert "run=" in seen["opened"]
    assert seen["back"] == first
    assert seen["again"]["tab"] == "Runs"
    assert seen["again"]["drawer"]


@pytest.mark.slow
def test_columns_sort(window: Window, two_hundred: Path) -> None:
    script = """
      const click = (table, title) => {
        const heads = [...document.querySelectorAll(`${table} .sort`)];
        heads.find((head) => head.textContent === title).click();
      };
      const column = (table, title) => {
        const heads = [...document.querySelectorAll(`${table} thead th`)];
        const at = heads.findIndex((head) => head.dataset.title === title);
        const shown = `${table} tbody:not([hidden]) tr:not([hidden])`;
        const rows = [...document.querySelectorAll(shown)].filter((row) => row.cells.length > at);
        return rows.map((row) => row.cells[at].textContent.trim());
      };
      const seen = {};
      for (const [table, title] of [["#headline-table", "tokens"], ["#run-list", "duration"]]) {
        const written = column(table, title);
        click(table, title);
        const down = column(table, title);
        click(table, title);
        const up = column(table, title);
        click(table, title);
        seen[title] = {written, down, up, again: column(table, title)};
      }
      return seen;
    """
    seen = window.see(two_hundred, script, tabs=("scores",))
    tokens = seen["tokens"]
    assert tokens["again"] == tokens["written"]
    assert tokens["down"][:2] == ["–", "–"]  # native and scaled stay at the top
    assert tokens["down"][2:8] == ["256M"] * 6
    assert tokens["up"][2:5] == ["0.5M"] * 3
    durations = seen["duration"]
    assert durations["again"] == durations["written"]
    assert durations["down"][0] == "3 h 33 min"
    assert durations["down"][-5:] == ["–"] * 5  # unknown ones are last either way
    assert durations["up"][-5:] == ["–"] * 5


@pytest.mark.slow
def test_the_marks_are_those_of_the_exported_table(window: Window, two_hundred: Path) -> None:
    script = """
      const rows = document.querySelectorAll('tbody[data-block="0"] .method:not([hidden])');
      const figure = (cell) => [Number(cell.dataset.value), cell.dataset.mark];
      return [...rows].map((row) => [...row.querySelectorAll("td[data-value]")].map(figure));
    """
    shown = window.see(two_hundred, script, tabs=("scores",))
    outputs = two_hundred.parents[1]
    section = headline(group_runs(read_runs(outputs))).sections[0]
    rows = [
        [
            [float(cell.attributes["data-value"]), cell.mark.value]
            for cell in row.cells
            if "data-value" in cell.attributes
        ]
        for row in section.rows
        if row.attributes["class"] == "method" and not row.is_extra
    ]
    assert shown == rows
    assert {mark for row in rows for _, mark in row} >= {"best", "near", "worse"}


@pytest.mark.slow
def test_a_number_and_a_point_open_config_and_command(window: Window, two_hundred: Path) -> None:
    async def look(tab: Page) -> dict[str, Any]:
        seen = await tab.run(
            """
            const dialog = document.getElementById("drawer");
            const all = (selector) => [...dialog.querySelectorAll(selector)];
            const state = () => ({
              open: dialog.open,
              command: dialog.querySelector(".command-line")?.textContent,
              config: dialog.querySelector("pre.config")?.textContent,
              files: all(".files a").map((link) => link.getAttribute("href")),
              runs: all(".drawer-runs button").map((button) => button.textContent),
            });
            document.querySelector('[data-tab="scores"]').click();
            const row = document.querySelector("#headline-table .method:not([hidden])");
            row.querySelector("td[data-value] button").click();
            const seen = {number: state()};
            dialog.querySelectorAll(".drawer-runs button")[1].click();
            seen.other = state().command;
            dialog.close();
            document.querySelector("#run-list button.open").click();
            seen.corrupt = {text: dialog.textContent, open: dialog.open};
            dialog.close();
            document.querySelector('[data-tab="answer"]').click();
            const chart = document.querySelector('[data-chart="budget"]');
            chart.scrollIntoView({behavior: "instant", block: "center"});
            const box = chart.querySelector(".points path").getBoundingClientRect();
            seen.point = [box.x + box.width / 2, box.y + box.height / 2];
            return seen;
            """
        )
        x, y = seen["point"]
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            given = {"x": x, "y": y, "button": "left", "clickCount": 1}
            await tab.send("Input.dispatchMouseEvent", type=kind, **given)
            await asyncio.sleep(0.3)
        seen["clicked"] = await tab.run(
            'return document.querySelector("#drawer[open] .command-line")?.textContent'
        )
        await tab.screenshot(ARTIFACTS / "drawer.png")
        return seen

    seen = window.visit(two_hundred, look, size=(1440, 1000), tabs=("answer",))
    number = seen["number"]
    assert number["open"]
    assert number["command"].startswith("python -m src.train +experiment=linearard_32k")
    assert "recipe:\n  name: linearard\n" in number["config"]
    assert "../linearard_32k/" in number["files"][0]
    assert [Path(file).name for file in number["files"]][:2] == ["config.yaml", "run.json"]
    assert number["runs"] == ["seed 1", "seed 0"]
    assert "seed=0" in seen["other"]
    assert seen["corrupt"]["open"]
    assert "corrupt: run.json" in seen["corrupt"]["text"]
    assert seen["clicked"].startswith("python -m src.train +experiment=linearard_32k")


@pytest.mark.slow
def test_figures_can_be_saved(window: Window, two_hundred: Path, tmp_path: Path) -> None:
    names = ("weights.csv", "weights.svg", "weights.png", "layers.csv", "drift.csv")

    async def look(tab: Page) -> dict[str, bytes]:
        await tab.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        for name in names:
            figure, _, kind = name.partition(".")
            button = f'#figure-{figure} [data-save="{kind}"]'
            await tab.run(f"document.querySelector('{button}').click()")
            for _ in range(100):
                if (tmp_path / name).is_file():
                    break
                await asyncio.sleep(0.1)
        return {name: (tmp_path / name).read_bytes() for name in names}

    saved = window.visit(two_hundred, look, tabs=("settings", "training"))
    lines = saved["weights.csv"].decode().splitlines()
    assert lines[0] == 'series,aligned,"Recovery, short suite (%)",low,high,note'
    assert len(lines) == 9
    assert lines[1].startswith('"LinearARD, 4.25M",Q,')
    data = ReportData(runs=tuple(read_runs(two_hundred.parents[1])))
    for name in ("layers", "drift"):
        (figure,) = [figure for figure in FIGURES if figure.name == name]
        _, chart = next(iter(figure.choices(data)))
        shown = list(csv.reader(saved[f"{name}.csv"].decode().splitlines()))
        whole = list(csv.reader(chart.csv().splitlines()))
        assert [line[:2] for line in shown] == [line[:2] for line in whole]
        values = [[float(line[2]) for line in lines[1:]] for lines in (shown, whole)]
        assert values[0] == pytest.approx(values[1], rel=1e-2)
    assert saved["weights.svg"].startswith(b"<svg")
    assert saved["weights.png"].startswith(b"\x89PNG")


def test_texts_of_runs_stay_text_even_without_the_policy(window: Window, page: Path) -> None:
    script = """
      document.querySelector("#run-list button.open").click();
      return {
        injected: typeof window.injected,
        images: document.querySelectorAll("main img, dialog img").length,
        links: document.querySelectorAll('a[href^="http"], svg a').length,
        legend: document.querySelector('[data-figure="perplexity-0"] .legend').textContent,
        stage: document.querySelector('[data-curve="lr"] .annotation').textContent,
        command: document.querySelector("dialog .command-line").textContent,
      };
    """
    seen = window.see(without_policy(page), script)
    assert (seen["injected"], seen["images"], seen["links"]) == ("undefined", 0, 0)
    assert LINK in seen["legend"]
    assert seen["stage"] == f"ard | {LINK}, ard | cpt"
    assert seen["command"] == INJECTION


def test_the_curves_follow_their_controls(window: Window, page: Path) -> None:
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
    found = window.see(page, script, tabs=("training",))
    both, one, parts, smoothed, rate, values, axis = found
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


def test_labels_do_not_overlap_and_words_stay_whole(
    window: Window, outputs: Path, make_run: MakeRun
) -> None:
    row = {"lr": 1e-3, "grad_norm": 1.0, "stage": "ard"}
    rows = [
        {"step": i, "tokens": 512 * i, "loss/total": 1 / i, "loss/relation/qq": 10.0**-i, **row}
        for i in range(1, 13)
    ]
    for name in ("one", "two"):
        make_run(f"a_long_name_of_an_experiment/20251120-{name}", metrics=rows, model="a (weights)")
    page = write_page(
        PageContext(runs=tuple(read_runs(outputs)), target=outputs / "dashboard" / "index.html")
    )
    ticks = """
      const labels = [...document.querySelectorAll('[data-curve="parts"] .ytick text')];
      const boxes = labels.map((label) => label.getBoundingClientRect());
      return boxes.map((box) => [box.top, box.bottom]);
    """
    boxes = sorted(window.see(page, ticks, tabs=("training",)))
    assert len(boxes) > 2
    assert all(above[1] <= below[0] for above, below in pairwise(boxes))
    words = """
      const lines = (cell) => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map((box) => box.top)).size;
      };
      const cells = [...document.querySelectorAll("#run-list tbody td:not(:has(*))")];
      return cells.map((cell) => [cell.textContent.trim(), lines(cell)]);
    """
    found = window.see(page, words, tabs=("runs",))
    assert any(text == "a (weights)" for text, _ in found)
    assert [text for text, lines in found if lines > len(text.split())] == []


def test_the_filter_and_the_theme(window: Window, page: Path) -> None:
    script = """
      const filter = document.getElementById("run-filter");
      filter.value = "OLD finished";
      filter.dispatchEvent(new Event("input"));
      const rows = [...document.querySelectorAll("#run-list tbody tr")];
      const background = () => getComputedStyle(document.body).backgroundColor;
      const template = () => document.querySelector('[data-curve="lr"]').layout.template;
      const grid = () => template().layout.xaxis.gridcolor;
      const before = [background(), grid()];
      document.getElementById("theme").click();
      return {
        shown: rows.filter((row) => !row.hidden).length,
        count: document.getElementById("run-count").value,
        before, after: [background(), grid()], label: document.getElementById("theme").textContent,
      };
    """
    seen = window.see(page, script, tabs=("training",))
    assert (seen["shown"], seen["count"]) == (1, "1 of 3")
    assert seen["before"] == ["rgb(255, 255, 255)", "rgb(226, 229, 234)"]
    assert seen["after"] == ["rgb(20, 22, 26)", "rgb(44, 48, 56)"]
    assert seen["label"] == "Light"


def test_panels_without_data_say_what_fills_them(window: Window, page: Path) -> None:
    script = 'return [...document.querySelectorAll(".hint")].map((hint) => hint.textContent)'
    hints = " ".join(window.see(page, script))
    for command in ("eval=short", "eval=long", "eval=drift", "+sweeps=qkv_weights"):
        assert command in hints
    assert "python -m kernels.bench" in hints


def test_an_empty_folder_has_a_page_without_errors(window: Window, outputs: Path) -> None:
    page = write_page(
        PageContext(runs=tuple(read_runs(outputs)), target=outputs / "dashboard" / "index.html")
    )
    assert "No runs yet" in window.see(page, "return document.body.textContent")


def test_a_phone_never_scrolls_sideways(window: Window, page: Path) -> None:
    script = "return document.documentElement.scrollWidth"
    assert window.see(page, script, size=(360, 780), phone=True) <= 360
