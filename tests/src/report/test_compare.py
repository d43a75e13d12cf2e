from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from src.report.compare import compare_tables, find_run
from src.report.runs import ReportError, read_runs
from tests.src.report import synthetic
from tests.src.report.synthetic import Job

MakeRun = Callable[..., Path]


def printed(outputs: Path, first: str, second: str) -> str:
    runs = read_runs(outputs)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*compare_tables(find_run(runs, first), find_run(runs, second)), sep="\n")
    return capture.get()


def test_configs_and_figures_stand_side_by_side(outputs: Path) -> None:
    synthetic.write_run(outputs / "a" / "one", Job(), 1)
    synthetic.write_run(outputs / "b" / "two", Job(method="cpt_long", lr=1e-3), 2)
    text = printed(outputs, "a/one", "two")
    assert text.index("Figures") < text.index("Config")
    assert re.search(r"recipe\.name +linearard +cpt_long", text)
    assert re.search(r"recipe\.stages\.cpt\.lr +2e-05 +0\.001", text)
    assert re.search(r"objective\.terms\.relation\.type +relation +\(not set\)", text)
    assert "rope.type" not in text  # the same in both
    assert re.search(r"tokens +4,456,448 +4,456,448", text)
    assert re.search(r"recovery, short suite +9\d\.\d% \(.* to .*\) +7\d\.\d%", text)
    assert re.search(r"long RULER 32768, after cpt +\d", text)
    assert re.search(r"perplexity 4,096, native +7\.35 +7\.35", text)


def test_a_part_of_the_items_is_said_and_bits_are_no_percentage(outputs: Path) -> None:
    synthetic.write_run(outputs / "one", Job(), 1)
    synthetic.write_run(outputs / "two", Job(), 2)
    file = outputs / "one" / "evals" / "short.json"
    content = json.loads(file.read_text()) | {"split": "test", "limit": 9}
    lower = {"higher_is_better": False}
    for model in content["models"]:
        model["results"] = {"gsm8k_bpb": {"value": 0.8731, "metric": "bits_per_byte", **lower}}
        model["average"] = {"value": 0.8731, **lower}
    file.with_name("short.test.json").write_text(json.dumps(content))
    file.unlink()
    text = printed(outputs, "one", "two")
    assert re.search(r"gsm8k_bpb, native \(half=test, limit=9\) +0\.873 ", text)
    assert re.search(r"recovery, short suite \(half=test, limit=9\) +\d", text)
    assert "short average, native (half" not in text
    assert re.search(r"short average, native +– +\d", text)


def test_equal_configs_are_said_to_be(outputs: Path, make_run: MakeRun) -> None:
    make_run("a")
    make_run("b")
    assert "The configs do not differ." in printed(outputs, "a", "b")


def test_markup_in_names_is_shown_as_it_is(outputs: Path, make_run: MakeRun) -> None:
    make_run("[bold]x", run_id="first")
    make_run("b", run_id="second")
    assert "[bold]x" in printed(outputs, "[bold]x", "second")


def test_a_run_is_meant_by_name_id_folder_or_beginning(outputs: Path, make_run: MakeRun) -> None:
    folder = make_run("quickstart/20251120-a1b2", run_id="20251120-a1b2")
    make_run("quickstart/20251121-cccc", run_id="20251121-cccc")
    runs = read_runs(outputs)
    wanted = ("quickstart/20251120-a1b2", "20251120-a1b2", "20251120", str(folder), f"{folder}/")
    for name in wanted:
        assert find_run(runs, name).folder == folder


def test_an_exact_name_wins_over_a_longer_one(outputs: Path, make_run: MakeRun) -> None:
    make_run("run-1", run_id="x")
    make_run("run-10", run_id="y")
    assert find_run(read_runs(outputs), "run-1").name == "run-1"


def test_an_ambiguous_beginning_is_refused_with_the_candidates(
    outputs: Path, make_run: MakeRun
) -> None:
    make_run("e/run-1", run_id="x")
    make_run("e/run-2", run_id="y")
    with pytest.raises(ReportError, match=r"'run-' may be e/run-[12], e/run-[12]; give more of it"):
        find_run(read_runs(outputs), "run-")


def test_an_unknown_run_is_refused_with_the_nearest(outputs: Path, make_run: MakeRun) -> None:
    make_run("quickstart/20251120-a1b2")
    with pytest.raises(ReportError, match=r"no run '20251120-a1c3'; the nearest are quickstart/"):
        find_run(read_runs(outputs), "20251120-a1c3")
    with pytest.raises(ReportError, match="there are no runs"):
        find_run([], "x")
