from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from src.report.page import render, write_page
from src.report.panels import PageContext
from src.report.runs import ReportError, read_runs
from tests.src.report import synthetic

MakeRun = Callable[..., Path]

VOID = {"meta", "input", "br", "img", "link"}
INJECTION = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on a tag that is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.data: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            is_data = self.elements[-1][1].get("type") == "application/json"
            (self.data if is_data else self.scripts).append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(name)) is not None]


def page_of(outputs: Path, window: int | None = None) -> Page:
    now = datetime(2025, 11, 22, 10, 51, tzinfo=UTC)
    target = outputs / "dashboard" / "index.html"
    runs = tuple(read_runs(outputs))
    return Page(render(PageContext(runs=runs, window=window, target=target, now=now)))


@pytest.fixture
def hostile(outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]) -> Path:
    """Every text of a run tries to leave its place."""
    evaluation["models"][3]["name"] = INJECTION
    evaluation["dataset"]["name"] = INJECTION
    texts = dict.fromkeys(("experiment", "method", "model", "command", "error"), INJECTION)
    rows = [
        {"step": 1, "tokens": 9, "stage": INJECTION, f"loss/{INJECTION}": 1.0, "loss/total": 1.0},
        {"step": 2, "tokens": 18, "stage": "cpt", "loss/total": 2.0},
    ]
    make_run("'\"&<script>alert(1)<", **texts, metrics=rows, evaluation=evaluation, step=2)
    return outputs


def test_it_writes_one_file_and_returns_it(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    make_run(evaluation=evaluation)
    target = outputs / "new" / "folder" / "page.html"
    assert write_page(PageContext(runs=tuple(read_runs(outputs)), target=target)) == target
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    page = Page(target.read_text("utf-8"))
    ids = page.attributes("id")
    panels = "answer newest headline settings long curves layers comparison performance runs"
    assert [name for name in ids if name in panels.split()] == panels.split()
    assert len(ids) == len(set(ids))


def test_an_empty_folder_says_how_to_start(outputs: Path) -> None:
    page = page_of(outputs)
    assert "No runs yet" in page.text
    assert "make quickstart" in page.text
    assert "python -m src.train +experiment=quickstart" in page.text


def test_the_page_shows_the_figures(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    make_run(evaluation=evaluation)
    page = page_of(outputs)
    assert "1 run · written 2025-11-22 10:51 UTC" in page.text
    for shown in ("33.5", "132.9", "38.1", "95.4%", "smollm2_135m", "24,576", "4 min 13 s"):
        assert shown in page.text
    (command,) = [run["command"] for text in page.data for run in _runs(json.loads(text))]
    assert command == "python -m src.train +experiment=quickstart"


def _runs(data: Any) -> list[dict[str, Any]]:
    return data.get("runs", []) if isinstance(data, dict) and "template" in data else []


def test_damaged_and_unfinished_runs_are_listed(outputs: Path, make_run: MakeRun) -> None:
    (make_run("torn") / "run.json").write_text("{")
    make_run("going", state="running")
    make_run("stopped", state="interrupted")
    text = page_of(outputs).text
    assert "3 runs, 1 corrupt" in text
    assert "torn folder config corrupt: run.json: Invalid JSON" in text
    assert "running" in text
    assert "interrupted" in text
    assert "No finished run has a perplexity evaluation yet" in text


def test_nothing_is_loaded_from_anywhere(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    make_run(evaluation=evaluation)
    page = page_of(outputs)
    assert page.attributes("src") == []
    assert all(re.match(r"(#|\.\./)", link) for link in page.attributes("href"))
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "img", "object"})


def test_the_policy_allows_exactly_the_own_scripts(hostile: Path) -> None:
    page = page_of(hostile)
    (policy,) = [value for value in page.attributes("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    digests = [hashlib.sha256(script.encode()).digest() for script in page.scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    assert f"script-src {hashes};" in policy
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_hostile_texts_stay_text(hostile: Path) -> None:
    page = page_of(hostile)
    assert not any("alert(1)" in script for script in page.scripts)
    assert INJECTION in page.text
    (curves,) = [data for text in page.data if "curves" in (data := json.loads(text))]
    assert curves["curves"][0]["stages"][0][0] == escape(INJECTION)  # Plotly reads HTML
    assert all("<" not in data for data in page.data)


def test_lone_surrogates_are_faults_and_do_not_stop_the_page(
    outputs: Path, make_run: MakeRun
) -> None:
    make_run("record", experiment="half \ud800")
    (make_run("config") / "config.yaml").write_text('rope: {type: "half \\ud800"}')
    text = Page(
        write_page(
            PageContext(runs=tuple(read_runs(outputs)), target=outputs / "index.html")
        ).read_text("utf-8")
    ).text
    assert "record folder config corrupt: run.json: Invalid JSON" in text
    assert "config folder config corrupt: config.yaml: " in text


def test_two_hundred_runs_in_ten_seconds(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    rows = [
        {"step": i, "tokens": 512 * i, "stage": "ard", "loss/total": 1 / i, "lr": 1e-3}
        for i in range(1, 101)
    ]
    for index in range(200):
        make_run(f"e{index % 7}/run-{index}", metrics=rows, evaluation=evaluation)
    begin = time.process_time()
    target = write_page(
        PageContext(runs=tuple(read_runs(outputs)), target=outputs / "dashboard" / "index.html")
    )
    assert time.process_time() - begin < 10
    text = target.read_text("utf-8")
    assert all(f"run-{index}</button>" in text for index in range(200))


def test_two_hundred_runs_with_everything_in_ten_seconds(outputs: Path) -> None:
    made = synthetic.write(outputs)
    begin = time.process_time()
    page = write_page(
        PageContext(runs=tuple(read_runs(outputs)), target=outputs / "dashboard" / "index.html")
    )
    text = page.read_text("utf-8")
    assert time.process_time() - begin < 10
    assert f'200 runs, <span class="bad">{made["corrupt"]} corrupt</span>' in text
    assert len(text) < 13_000_000
    assert "<script>window.injected" not in text


def test_a_folder_as_target_is_refused(outputs: Path) -> None:
    with pytest.raises(ReportError, match=r"target_path=.*this is a folder"):
        write_page(PageContext(runs=(), target=outputs))


def test_a_target_that_cannot_be_written_is_refused(outputs: Path) -> None:
    (outputs / "file").write_text("")
    with pytest.raises(ReportError, match=r"target_path=.*cannot be written"):
        write_page(PageContext(runs=(), target=outputs / "file" / "index.html"))
