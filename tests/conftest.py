"""Shared by all tests: no network for hubs, Triton interpreted, configs as a user composes them."""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import time

# Before torch is loaded: work this small is done before a second thread has started, and several
# test files run at a time. Commands that tests start take it over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from src.settings.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# What libraries make while test files are collected lives as long as the process.
gc.disable()

if not torch.cuda.is_available():
    # Triton decides when it is loaded, and much loads it: so here, before anything else. The
    # setting is taken back, as it is not for the commands that tests start.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("kernels.relation_kl.triton")
        importlib.import_module("kernels.relation_kl.hopper")
        importlib.import_module("kernels.cached_attention")
    from triton import language
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @functools.cache
    def languages_of(function: object) -> list[object]:
        known = (language, language.core)
        return [x for x in function.__globals__.values() if any(x is one for one in known)]

    def patch_lang(function: object) -> object:
        """The interpreter's own, which looks through all of Triton again for each call of a
        function inside a kernel, when all is patched: more than half of the time.
        """
        if any(is_builtin(known.load) for known in languages_of(function)):
            return ordinary(function)
        return interpreter._LangPatchScope()

    ordinary, interpreter._patch_lang = interpreter._patch_lang, patch_lang


def by_default(chosen: Callable[..., bool]) -> Callable[[Callable], Callable]:
    """@by_default(lambda tokens, dtype: ...): a test's other variants are thorough.

    `chosen` takes parameters of the test by their names. Variants for a GPU all stay.
    """

    def marked(test: Callable) -> Callable:
        test.by_default = chosen
        return test

    return marked


def pytest_itemcollected(item: pytest.Item) -> None:
    chosen = getattr(getattr(item, "function", None), "by_default", None)
    if chosen is not None and not item.get_closest_marker("gpu"):
        parameters = item.callspec.params
        if not chosen(*(parameters[name] for name in inspect.signature(chosen).parameters)):
            item.add_marker(pytest.mark.thorough)


def pytest_collection_finish() -> None:
    """Python looks for garbage less often than by default, as tests make little of it.

    This and the next function save two fifths of the CPU time of tests/src/test_train.py.
    """
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


def pytest_runtest_setup() -> None:
    """A run looks for garbage several times: not again among what tests before it have loaded."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a process that got one last would run on alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def compose_plain() -> Callable[..., dict]:
    """compose_plain("+experiment=quickstart", ...) -> what the boundary gets."""
    from src.settings import loading

    composer = functools.cache(loading.Composer)

    @functools.cache
    def once(name: str, *overrides: str) -> dict:
        return loading.to_plain(composer(name)(overrides))

    def composed(*overrides: str, name: str = "train") -> dict:
        return copy.deepcopy(once(name, *overrides))

    return composed


@pytest.fixture(scope="session")
def compose_run(compose_plain: Callable[..., dict]) -> Callable[..., object]:
    """compose_run("+experiment=quickstart", ...) -> RunConfig."""
    from src.settings import strict
    from src.settings.config import RunConfig

    def composed(*overrides: str) -> object:
        return strict.load_plain(RunConfig, compose_plain(*overrides))

    return composed


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files with words drawn at random: five to train on, two to hold out."""
    import random

    folder = tmp_path_factory.mktemp("prose")
    draw = random.Random(1)
    words = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9)))
        for _ in range(400)
    ]
    for name in ("one", "two", "three", "four", "five", "held-a", "held-b"):
        text = " ".join(draw.choices(words, k=900))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_overrides(prose: Path) -> list[str]:
    """A run of seconds on the tiny model and text files: two stages, four and two steps."""
    return [
        "model=tiny",
        "data=files",
        f"data.sources.files.paths=[{prose}]",
        "data.held_out=[held-*]",
        "engine=cpu",
        "tracking=none",
        "eval=none",
        "seed=3",
        "checkpoint.every_steps=2",
        *short_recipe(),
    ]


@pytest.fixture(scope="session")
def train_tiny(
    compose_run: Callable[..., RunConfig],
    tiny_overrides: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """train_tiny(*overrides) -> the folder of a run made in this process."""
    from src.training import start

    def run(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "run"
        settings = compose_run(*tiny_overrides, f"run_dir={folder}", *overrides)
        return start.train(settings, None)

    return run


@pytest.fixture(scope="session")
def train_fake(train_tiny: Callable[..., Path]) -> Callable[..., Path]:
    """train_fake(*overrides) -> the folder of such a run with engines of tests/fakes.py."""
    from tests import fakes

    def run(*overrides: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("src.training.stage.build_engines", fakes.build_engines)
            return train_tiny(*overrides)

    return run


def short_recipe() -> list[str]:
    """LinearARD's two stages on blocks of 64 and 128 tokens."""
    return [
        "recipe.stages.ard.tokens=1024",
        "recipe.stages.ard.tokens_per_step=256",
        "recipe.stages.ard.streams.short.length=64",
        "recipe.stages.ard.parameters.dropout=0.0",
        "recipe.stages.cpt.tokens=512",
        "recipe.stages.cpt.tokens_per_step=256",
        "recipe.stages.cpt.streams.long.length=128",
    ]


@pytest.fixture(scope="session")
def start_command() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start_command("-m", "src.train", *overrides, env={}) -> a running `python ...`.

    It runs from the repository's root. A process that a test leaves running is killed at the end.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*program: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *program],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def run_command(start_command: Callable[..., subprocess.Popen[str]]) -> Callable[..., object]:
    """run_command("src.train", *overrides) -> a finished subprocess, from the repository's root."""

    def run(module: str, *arguments: str, env: dict[str, str] | None = None) -> object:
        return ended(start_command("-m", module, *arguments, env=env))

    return run


def ended(process: subprocess.Popen[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Wait for a process; its exit code and what it has said."""
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def forget_hydra() -> None:
    """Forget what a command in this process has composed, so that another can compose its own."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., object]:
    """run_here("src.train", *overrides) -> what `run_command` gives, without a process of its own.

    Loading torch and transformers takes most of a refused command's time. A fault with a traceback
    is raised here.
    """
    import runpy

    def run(module: str, *arguments: str) -> object:
        # Also keeps what a command does to both from the tests that follow.
        monkeypatch.setattr("sys.argv", [module, *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.chdir(ROOT)
        forget_hydra()
        capfd.readouterr()
        code = 0
        try:
            # As `python -m` does: Hydra finds conf/ by it.
            runpy.run_path(str(ROOT / f"{module.replace('.', '/')}.py"), run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            forget_hydra()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess([module, *arguments], code, out, err)

    return run


def losses(run_dir: Path, key: str = "loss/total") -> Sequence[float]:
    """A run's logged losses."""
    import json

    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry[key] for line in lines if key in (entry := json.loads(line))]


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool], number: int) -> None:
    """Send a signal to a run as soon as it has come so far, and wait for its end."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"the run ended before it could be killed: {ended(process)}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(60)


def cut_after(whole: Path, checkpoint: str, cut: Path) -> Path:
    """A copy of a run as it was when it had been interrupted after a checkpoint."""
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoints").iterdir():
        if folder.name != checkpoint:
            shutil.rmtree(folder)
    for folder in cut.glob("export*"):
        shutil.rmtree(folder)
    for name in ("config.yaml", "run.json"):
        text = (cut / name).read_text().replace(str(whole), str(cut))
        (cut / name).write_text(text.replace('"finished"', '"interrupted"'))
    return cut
