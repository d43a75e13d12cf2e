from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from src.report.panels import PageContext
from src.report.panels.runs import runs_panel
from src.report.runs import read_runs
from src.report.tables import Cell

MakeRun = Callable[..., Path]


def listed(outputs: Path, target: Path) -> list[tuple[Cell, Cell]]:
    """The cells of the name and of the state of each run."""
    now = datetime(2025, 11, 20, 12, 0, tzinfo=UTC)
    panel = runs_panel(PageContext(runs=tuple(read_runs(outputs)), target=target, now=now))
    assert panel is not None
    return [(row.cells[0], row.cells[1]) for row in panel.values["table"].rows]


def test_links_are_relative_to_the_page(outputs: Path, make_run: MakeRun) -> None:
    make_run("a b/<x>#1?")
    ((name, _),) = listed(outputs, outputs / "dashboard" / "index.html")
    assert dict(name.links)["folder"] == "../a%20b/%3Cx%3E%231%3F/"
    assert dict(name.links)["config"] == "../a%20b/%3Cx%3E%231%3F/config.yaml"


def test_a_link_cannot_name_a_scheme(outputs: Path, make_run: MakeRun) -> None:
    make_run("javascript:alert(1)")
    ((name, _),) = listed(outputs, outputs / "index.html")
    assert dict(name.links)["folder"] == "javascript%3Aalert%281%29/"


def test_a_missing_config_has_no_link(outputs: Path, make_run: MakeRun) -> None:
    (make_run() / "config.yaml").unlink()
    ((name, _),) = listed(outputs, outputs / "index.html")
    assert "config" not in dict(name.links)


@pytest.mark.parametrize(
    ("state", "updated_at", "silence"),
    [
        ("running", "2025-11-20T11:55:00Z", ""),
        ("running", "2025-11-20T09:00:00Z", "silent for 3 h 00 min"),
        ("running", None, ""),
        ("finished", "2025-11-20T09:00:00Z", ""),
    ],
)
def test_a_silent_run_is_told_by_its_record(
    outputs: Path, make_run: MakeRun, state: str, updated_at: str | None, silence: str
) -> None:
    folder = make_run(state=state, updated_at=updated_at)
    for path in (folder, *folder.iterdir()):
        os.utime(path, (0, 0))
    ((_, state),) = listed(outputs, outputs / "index.html")
    assert state.fault == silence


def test_a_run_that_logs_is_not_silent(outputs: Path, make_run: MakeRun) -> None:
    folder = make_run(state="running", updated_at="2025-11-20T09:00:00Z")
    logged = datetime(2025, 11, 20, 11, 58, tzinfo=UTC).timestamp()
    for path in (folder, *folder.iterdir()):
        os.utime(path, (logged, logged))
    ((_, state),) = listed(outputs, outputs / "index.html")
    assert state.fault == ""
