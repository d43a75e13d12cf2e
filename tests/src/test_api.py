"""The commands from Python, and the notebook that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from src import api
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training.launch import World
from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "from_python.ipynb"


def test_settings_are_those_of_the_command(compose_run: Callable[..., RunConfig]) -> None:
    assert api.compose("+experiment=quickstart", "seed=9") == compose_run(
        "+experiment=quickstart", "seed=9"
    )


def test_a_plan_is_that_of_the_dry_run() -> None:
    made = api.plan("+experiment=linearard_32k", "plan_for=h200")
    assert made.fits
    assert made.tokens == 4_456_448
    assert made.device.name == "NVIDIA H200"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+experiment=none_such"], "none_such"),
        (["seed=-1", "optim.beta1=1"], r"(?s)seed: .* \(got -1\).*beta1"),
        (["plan_for=h100"], "plan_for=h100 is for dry runs"),
        (["resume=outputs/x"], "use plan"),
    ],
)
def test_what_a_command_refuses_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api.run(*overrides)


def test_a_run_is_recorded_with_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = []

    def train(settings: RunConfig, world: World | None, command: str | None = None) -> Path:
        commands.append((settings.seed, world, command))
        return Path("there")

    monkeypatch.setattr("src.training.start.train", train)
    assert api.run("+experiment=quickstart", "seed=9", "tags=[a b]") == Path("there")
    typed = "python -m src.train +experiment=quickstart seed=9 'tags=[a b]'"
    assert commands == [(9, None, typed)]


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "a notebook is committed without outputs"
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    (folder,) = tmp_path.glob("*/run")
    assert (folder / "export" / "config.json").is_file()
    assert (folder / "evals" / "perplexity.json").is_file()
