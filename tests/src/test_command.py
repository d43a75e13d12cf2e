"""How commands fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from src import command
from src.settings import loading
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from tests.conftest import ROOT

READ = "a file of conf/ or sweeps/ that this command chooses cannot be read: "
# What a file of conf/ may hold, with what is said of it.
BROKEN = [
    pytest.param(b"tags: [", "while parsing a flow node", id="yaml"),
    pytest.param("# größer\n".encode("latin-1"), "'utf-8' codec can't decode", id="latin"),
    pytest.param(b"defaults: 3\n", "defaults must be a list (got int)", id="defaults"),
    pytest.param(b"defaults: [3]\n", "Unsupported type in defaults : int", id="default"),
    pytest.param(b"defaults: [{a: 1, b: 2}]\n", "Too many keys in default item", id="keys"),
    pytest.param(b"defaults: [train]\n", "it contains itself", id="loop"),
    pytest.param(b"seed: &a [*a]\n", "it contains itself", id="anchor"),
    pytest.param(b"# @package\nseed: 3\n", "Expected header format: KEY VALUE", id="header"),
]


def failure(app: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that ends with a usage error."""
    with pytest.raises(SystemExit) as ended:
        command.run(app, RunConfig)
    assert ended.value.code == command.USAGE_ERROR
    return capsys.readouterr().err


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of settings for Hydra and our composer; nothing is typed."""
    monkeypatch.setattr("sys.argv", ["src.train"])
    monkeypatch.setattr(loading, "_CONF", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_a_broken_file_of_settings_is_one_message(
    content: bytes, message: str, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (conf / "train.yaml").write_bytes(content)

    def app() -> None:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            compose("train")

    said = failure(app, capsys)
    assert said.startswith(f"error: {READ}")
    assert message in said
    assert said.endswith("; mend the file\n")
    assert said.count("\n") == 1
    with pytest.raises(ConfigError) as refused:
        loading.compose(RunConfig, "train", [])
    assert f"error: {refused.value}\n" == said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("seed: ${\n", "no viable alternative at input '${'", id="interpolation"),
        pytest.param("null: 3\n", "Incompatible key type 'NoneType'", id="key"),
        pytest.param("seed: !!set {a}\n", "Value 'set' is not a supported", id="set"),
    ],
)
def test_an_error_of_hydras_without_words_has_those_of_its_cause(
    content: str, message: str, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (conf / "train.yaml").write_text("defaults: [other]\n")
    (conf / "other.yaml").write_text(content)

    def app() -> None:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            compose("train")

    with pytest.raises(HydraException, match=r"^$"):
        app()
    assert message in failure(app, capsys)
    with pytest.raises(ConfigError) as refused:
        loading.compose(RunConfig, "train", [])
    assert message in str(refused.value)


def test_a_file_that_is_read_with_yaml_alone_is_named_too(
    conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure(lambda: yaml.safe_load("tags: ["), capsys).startswith(f"error: {READ}")


@pytest.mark.parametrize("error", [ValueError("a fault"), TypeError("a fault"), RecursionError()])
def test_a_fault_of_our_own_code_keeps_its_traceback(error: Exception, conf: Path) -> None:
    def app() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        command.run(app, RunConfig)
    assert raised.value is error


def test_a_reader_that_leaves_early_is_no_fault() -> None:
    shown = f"{sys.executable} -m src.train --help | head -n 1"
    done = subprocess.run(shown, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("python -m src.train: ")
    assert done.stderr == ""


def test_other_broken_pipes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise BrokenPipeError("of a child")

    monkeypatch.setattr("sys.argv", ["train"])
    with pytest.raises(BrokenPipeError, match="of a child"):
        command.run(app, RunConfig)
