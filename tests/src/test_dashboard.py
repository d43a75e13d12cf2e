from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from src import dashboard
from src.report.runs import ReportError
from src.settings import loading
from src.settings.strict import ConfigError
from tests.src.report import synthetic

ROOT = Path(__file__).parents[2]
RunHere = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two runs, the second with a torn record."""
    for name in ("whole", "torn"):
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        record = {"schema": 1, "run_id": name, "state": "running", "method": "linearard"}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "config.yaml").write_text("rope: {type: linear, target_length: 8192}\n")
    (tmp_path / "outputs" / "torn" / "run.json").write_text("{")
    return tmp_path / "outputs"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    line = [sys.executable, "-m", "src.dashboard", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def composed(*overrides: str) -> dashboard.DashboardConfig:
    """The config as the command composes it."""
    return loading.load(dashboard.DashboardConfig, loading.Composer("dashboard")(overrides))


def test_it_writes_the_page_and_no_hydra_folder(outputs: Path) -> None:
    before = {path.name for path in ROOT.iterdir()}
    done = command(f"outputs={outputs}")
    target = outputs / "dashboard" / "index.html"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{target}: 2 runs, 1 corrupt\n"
    assert target.is_file()
    assert {path.name for path in outputs.iterdir()} == {"whole", "torn", "dashboard"}
    new = {path.name for path in ROOT.iterdir()} - before
    assert not new & {".hydra", "multirun", "dashboard.log", "dashboard"}


def test_a_folder_without_runs_is_said(tmp_path: Path, run_here: RunHere) -> None:
    done = run_here("src.dashboard", f"outputs={tmp_path}", "view=table")
    assert done.stdout.splitlines()[-1] == (
        f"0 runs, 0 corrupt; no run is below outputs={tmp_path}: name another, or start a run"
    )


@pytest.mark.parametrize("more", [[], ["export=paper"]], ids=["page", "paper"])
def test_nothing_is_written_into_a_folder_without_runs(
    tmp_path: Path, run_here: RunHere, more: list[str]
) -> None:
    (tmp_path / "holiday.jpg").touch()
    done = run_here("src.dashboard", f"outputs={tmp_path}", *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: outputs={tmp_path}: no run is below this folder")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_page_without_runs_is_written_where_it_is_asked_for(
    tmp_path: Path, run_here: RunHere
) -> None:
    (tmp_path / "runs").mkdir()
    page = tmp_path / "page.html"
    done = run_here("src.dashboard", f"outputs={tmp_path / 'runs'}", f"target_path={page}")
    assert done.stdout.startswith(f"{page}: 0 runs, 0 corrupt; no run is below outputs=")
    assert "No runs yet" in page.read_text()


def test_help_names_every_key(run_here: RunHere) -> None:
    done = run_here("src.dashboard", "--help")
    assert done.returncode == 0
    keys = [field.name for field in fields(dashboard.DashboardConfig) if field.name != "only"]
    for word in (*keys, "only.experiment", "python -m src.dashboard view=table"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("windw=1", "windw: unknown key 'windw'; did you mean 'window'?"),
        ("view=graph", "view: input should be 'page' or 'table' (got 'graph')"),
        ("outputs=/no/such/folder", "outputs=/no/such/folder: no such folder"),
        ("compare=a,b", "compare: no run 'a'"),
    ],
    ids=["key", "value", "folder", "compare"],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run_here: RunHere, argument: str, message: str, tmp_path: Path
) -> None:
    done = run_here("src.dashboard", f"outputs={tmp_path}", argument)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_report_in_wandb_needs_a_login(
    tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    done = run_here("src.dashboard", "target=wandb")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: target=wandb needs a login")


@pytest.mark.parametrize(
    "override",
    [
        *("window=wide", "window=0", "outputs=''", "+other=1", "port=70000", "refresh_seconds=0"),
        *("compare=[a]", "compare=[a,b,c]", "export=slides", "export_formats=[]", "only.seed=1"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(override: str) -> None:
    key = override.lstrip("+").partition("=")[0]
    with pytest.raises((ConfigError, ConfigCompositionException), match=key):
        composed(override)


@pytest.mark.parametrize(
    "overrides",
    [
        ("serve=true", "view=table"),
        ("compare=[a,b]", "export=paper"),
        ("serve=true", "only.model=tiny"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"do(es)? not go"):
        composed(*overrides)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("compare=a,b", ("a", "b")),
        ("compare=e/run 1,it's=[x]", ("e/run 1", "it's=[x]")),
        ("compare=[a,b]", ("a", "b")),
    ],
)
def test_two_runs_are_typed_with_a_comma(typed: str, meant: tuple[str, str]) -> None:
    assert composed(dashboard.quote_pair(typed)).compare == meant
    assert dashboard.quote_pair("outputs=a,b") == "outputs=a,b"


def test_files_for_a_paper_are_written(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_run(outputs / "done", synthetic.Job(), 0)
    dashboard.show(composed(f"outputs={outputs}", "export=paper", "export_formats=[csv]"))
    folder = outputs / "dashboard" / "paper"
    assert (folder / "headline.tex").is_file()
    assert capsys.readouterr().out.startswith(f"{folder}: ")


def test_two_runs_are_compared(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard.show(composed(f"outputs={outputs}", "compare=[whole,torn]"))
    assert "The configs do not differ." in capsys.readouterr().out


def test_only_some_runs_are_shown(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((outputs / "whole" / "run.json").read_text())
    (outputs / "whole" / "run.json").write_text(json.dumps({**record, "model": "tiny"}))
    dashboard.show(composed(f"outputs={outputs}", "view=table", "only.model=tiny"))
    assert capsys.readouterr().out.splitlines()[-1] == "1 run, 0 corrupt"
    with pytest.raises(ReportError, match=r"only\.model=large: no run has it; there are tiny"):
        dashboard.show(composed(f"outputs={outputs}", "view=table", "only.model=large"))


def test_the_page_goes_below_the_outputs_unless_told() -> None:
    assert composed().target_path == "outputs/dashboard/index.html"
    assert composed("outputs=elsewhere").target_path == "elsewhere/dashboard/index.html"
    assert composed("target_path=a.html").target_path == "a.html"


def test_the_table_lists_the_runs_and_writes_nothing(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.show(composed(f"outputs={outputs}", "view=table"))
    printed = capsys.readouterr().out
    assert "whole" in printed
    assert "torn: corrupt: run.json: Invalid JSON" in " ".join(printed.split())
    assert printed.splitlines()[-1] == "2 runs, 1 corrupt"
    assert {path.name for path in outputs.iterdir()} == {"whole", "torn"}
