"""Values of environment variables stay out of what a run writes; a resumed run asks again."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from src import api, environment, tracking
from src.evals import running
from src.multirun import composition
from src.planning.printing import show
from src.report.files import read_config
from src.run_folder import RunFolder, RunFolderError
from src.settings import loading
from src.settings.config import EvaluateConfig, RunConfig
from src.settings.strict import ConfigError
from src.training import start
from src.training.card import model_card
from src.training.checkpoint import CheckpointError

SECRET = "s3cret-Value.9"
SHORT = "hun7er"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("A_SECRET", SECRET)
    monkeypatch.setenv("A_SHORT_ONE", SHORT)
    monkeypatch.setattr(environment, "_written", {})
    environment._pattern.cache_clear()
    yield
    environment._pattern.cache_clear()


def compose(*overrides: str) -> RunConfig:
    return loading.compose(RunConfig, "train", ["model=tiny", *overrides])


def hidden(text: str) -> bool:
    return SECRET not in text and SHORT not in text


@pytest.fixture
def texts(prose: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prose, tmp_path / f"texts-{SECRET}"))


@pytest.fixture
def settings(
    texts: Path, tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    monkeypatch.setenv("TEXTS", str(texts))
    return compose(
        *(o for o in tiny_overrides if not o.startswith(("model=", "data.sources"))),
        "data.sources.files.paths=['${oc.env:TEXTS}']",
        "data.name='pre${oc.env:A_SHORT_ONE}post'",
        "tags=['${oc.env:A_SECRET}','${tracking.group}']",
        "tracking.group='of ${oc.env:A_SECRET}'",
        "tracking=tensorboard",
        f"run_dir={tmp_path / 'run'}",
    )


def cut_off(run: Path) -> None:
    """As if the run had been interrupted after its fourth step."""
    shutil.rmtree(run / "checkpoints" / "step-6")
    shutil.rmtree(run / "export")
    RunFolder(run).update(state="interrupted")


def test_no_file_of_a_run_has_a_value_and_it_resumes(
    settings: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("src.training.stage.build_engines", _engines())
    with environment.redacting_output():
        run = start.train(settings, None)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert any("tensorboard" in str(path) for path in files)
    for path in files:
        assert hidden(path.read_bytes().decode("latin-1")), path
    assert hidden("".join(capfd.readouterr()))
    stored = RunFolder(run).stored_config()
    assert stored["tags"] == ["${oc.env:A_SECRET}", "of ${oc.env:A_SECRET}"]
    assert stored["data"]["name"] == "pre${oc.env:A_SHORT_ONE}post"
    assert read_config(run / "config.yaml").values["tags"] == stored["tags"]
    for path in (run / "run.json", run / "config.yaml", *run.glob("checkpoints/*/*.*[ln]")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    before = (run / "export" / "model.safetensors").read_bytes()
    cut_off(run)
    with monkeypatch.context() as patch:
        patch.delenv("A_SECRET")
        with pytest.raises(
            RunFolderError, match=r"tracking\.group=of .*variable A_SECRET is not set: set it"
        ):
            start.resume(run, None)
    with monkeypatch.context() as patch:
        patch.setenv("A_SHORT_ONE", "another")
        with pytest.raises(CheckpointError, match="set A_SECRET, A_SHORT_ONE, TEXTS as before"):
            start.resume(run, None)
    monkeypatch.setenv("A_SECRET", "rotated-since")  # of tags, which decide nothing
    start.resume(run, None)
    assert (run / "export" / "model.safetensors").read_bytes() == before
    assert "rotated-since" not in (run / "config.yaml").read_text()


def _engines() -> Any:
    from tests import fakes

    return fakes.build_engines


def test_w_and_b_gets_interpolations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    settings = compose("tags=['${oc.env:A_SECRET}']", "tracking=wandb_offline")
    given: dict[str, Any] = {}

    def init(**kept: Any) -> Any:
        given.update(kept)
        return SimpleNamespace(define_metric=lambda *a, **k: None)

    monkeypatch.setattr(wandb, "init", init)
    tracking.start(
        settings.tracking,
        run_dir=tmp_path,
        run_id="id",
        name=f"{SECRET}-1",
        job_type="x",
        tags=settings.tags,
        settings={"tags": settings.tags},
    )
    assert hidden(str(given))
    assert given["tags"] == ["${oc.env:A_SECRET}"]
    assert stat.S_IMODE((tmp_path / "wandb").stat().st_mode) == 0o700


def test_plan_card_and_sweep_show_interpolations() -> None:
    settings = compose("dry_run=true", "model.name='${oc.env:A_SECRET}'")
    out = StringIO()
    show(api.planning.make(settings, world_size=1), settings, Console(file=out))
    record = {"run_id": "1", "git_commit": "2"}
    text = out.getvalue() + model_card(settings, record, list(settings.recipe.stages)[-1])
    assert hidden(text)
    assert "${oc.env:A_SECRET}" in text
    sweep = composition.expand(
        ["-m", "model=tiny", "data.name='${oc.env:A_SECRET}',b", "run_dir='/x/${oc.env:A_SECRET}'"][
            1:
        ]
    )
    assert sweep.jobs[0].swept == ("data.name=${oc.env:A_SECRET}",)
    assert sweep.folder == Path("/x") / SECRET


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed='${oc.env:A_SECRET}'", r"seed: .*\(got '\$\{oc.env:A_SECRET\}'"),
        ("model.path='/${oc.env:A_SECRET}'", r"/\$\{oc.env:A_SECRET\}"),
        ("tags='${oc.env:NOWHERE}'", "NOWHERE"),
        ("tags='${oc.decode:${oc.env:A_LIST}}'", "tags: it is made of .* A_LIST by a resolver"),
        (r"tags=['\\${oc.env:A_SECRET}']", r"tags\[0\]: .* without a backslash"),
    ],
)
def test_refusals_show_interpolations(
    override: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_LIST", f"[{SECRET},b]")
    with pytest.raises(ConfigError, match=said) as refused:
        loading.compose(
            RunConfig,
            "train",
            [o for o in ("model=tiny", override) if "path" not in override or o == override],
        )
    assert hidden(str(refused.value))


def test_a_number_made_of_a_variable_is_a_setting_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEED", "12345")
    assert compose("seed='${oc.decode:${oc.env:SEED}}'").seed == 12345


def test_a_command_that_fails_prints_no_value(
    run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_here("src.evaluate", "run='/nowhere/${oc.env:A_SECRET}'", "eval=short")
    assert done.returncode == 2
    assert "/nowhere/${oc.env:A_SECRET}" in done.stderr
    assert hidden(done.stderr)


def test_an_evaluation_in_ranks_hands_over_interpolations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = loading.compose(
        EvaluateConfig,
        "evaluate",
        [
            "model=tiny",
            "eval=short",
            "data=files",
            "data.sources.files.paths=['/${oc.env:A_SECRET}']",
        ],
    )
    seen: list[str] = []

    def spawn(arguments: list[str], **_: Any) -> None:
        request = Path(arguments[-1])
        seen.append(request.read_text())
        request.with_name("answer.json").write_text('{"records":{},"failures":{},"notes":[]}')

    monkeypatch.setattr(running.launch, "spawn", spawn)
    running._in_ranks(settings, 2)
    assert hidden(seen[0])
    assert "/${oc.env:A_SECRET}" in seen[0]


def test_short_values_are_replaced_where_they_stand_alone() -> None:
    environment.hide("2026", "${oc.env:YEAR}")
    environment.hide("ab", "${oc.env:SMALL}")
    assert environment.redacted("run 20261130 of 2026, ab") == "run 20261130 of ${oc.env:YEAR}, ab"
