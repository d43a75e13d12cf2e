"""W&B offline, read back from the file it writes; nothing where tracking is off."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest

from src import tracking
from src.tracking import Tracker, TrackingConfig

ROOT = Path(__file__).resolve().parents[2]
API_KEY = "0123456789abcdef" * 2 + "76543210"
OFFLINE = TrackingConfig("offline", "a-project", group="a-group", artifact="export")
SETTINGS = {
    "seed": 3,
    "recipe": {"stages": {"ard": {"lr": 1e-3, "projections": ("q_proj", "k_proj")}}},
    "run_dir": None,
}


def start(config: TrackingConfig, run_dir: Path, run_id: str = "20260101-000000-abc") -> Tracker:
    return tracking.start(
        config,
        run_dir=run_dir,
        run_id=run_id,
        name="a-name",
        job_type="linearard",
        tags=["quickstart", "tiny"],
        settings=SETTINGS,
    )


@pytest.fixture(scope="module", autouse=True)
def private_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's login, settings and caches out of it; stop the service afterwards."""
    home = tmp_path_factory.mktemp("wandb-home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_API_KEY", API_KEY)
        yield
        import wandb

        wandb.teardown()


def log_file(run_dir: Path) -> Path:
    (found,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return found


@functools.cache
def inspect(file: Path, *options: str) -> str:
    """What W&B's own reader says of the file of a run that has ended."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def records(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's records by their type, in order."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in inspect(file).splitlines():
        record = json.loads(line)
        found[record["type"]].append(record[record["type"]])
    return found


@pytest.fixture(scope="module")
def run_dir(private_wandb: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that logged three steps, a table and a summary, and succeeded."""
    folder = tmp_path_factory.mktemp("tracked")
    tracker = start(OFFLINE, folder)
    for step in (1, 2, 5):
        metrics = {"tokens": 256 * step, "flops": 1e9 * step, "loss/total": 2.0 / step}
        layers = {"loss/relation/by_layer": [step + 0.25, step + 0.75], "lr": 0.1 * step}
        tracker.log(metrics | layers, step=step)
    tracker.log_table("perplexity", ["model", "ppl 64"], [["native", 8.5], ["scaled", None]])
    tracker.summarize({"eval/gap_closed/64": 0.9, "eval/recovery/64": 97.5})
    tracker.log_figures({"plots/a": go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))})
    (folder / "export").mkdir()
    (folder / "export" / "config.json").write_text("{}")
    tracker.log_model(folder / "export", name="a-model")
    tracker.finish(succeeded=True)
    return folder


@pytest.fixture(scope="module")
def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads(inspect(log_file(run_dir), "--summary"))


def test_the_run_is_named_and_its_config_kept(run_dir: Path, summary: dict[str, Any]) -> None:
    (run,) = records(log_file(run_dir))["run"]
    assert run["run_id"] == "20260101-000000-abc"
    assert (run["project"], run["run_group"]) == ("a-project", "a-group")
    assert (run["display_name"], run["job_type"]) == ("a-name", "linearard")
    assert run["tags"] == ["quickstart", "tiny"]
    assert summary["config"] == {
        "seed": 3,
        "recipe/stages/ard/lr": 1e-3,
        "recipe/stages/ard/projections": ["q_proj", "k_proj"],
        "run_dir": None,
    }


def test_history_has_the_steps_and_lists_as_scalars(run_dir: Path) -> None:
    history = [entry["item"] for entry in records(log_file(run_dir))["history"]]
    history, rest = history[:3], history[3:]
    assert "perplexity.path" in history[-1], "a table comes with the last step"
    assert [entry["plots/a._type"] for entry in rest] == ["plotly-file"]
    assert [entry["_step"] for entry in history] == [1, 2, 5]
    assert [entry["flops"] for entry in history] == [1e9, 2e9, 5e9]
    assert [entry["tokens"] for entry in history] == [256, 512, 1280]
    assert [entry["train/loss"] for entry in history] == [2.0, 1.0, 0.4]
    assert [entry["train/lr"] for entry in history] == [0.1, 0.2, 0.5]
    assert [entry["layers/relation/0"] for entry in history] == [1.25, 2.25, 5.25]
    assert [entry["layers/relation/1"] for entry in history] == [1.75, 2.75, 5.75]
    assert not any("by_layer" in key or key.startswith("loss") for e in history for key in e)


def test_curves_are_drawn_over_tokens_or_work(run_dir: Path) -> None:
    metrics = records(log_file(run_dir))["metric"]
    assert [m["name"] for m in metrics if "name" in m] == ["tokens", "flops", "seconds"]
    (others,) = [m for m in metrics if "glob_name" in m]
    assert (others["glob_name"], others["step_metric"]) == ("*", "tokens")


def test_summary_and_last_values_are_kept(summary: dict[str, Any]) -> None:
    found = summary["summary"]
    assert found["eval/gap_closed/64"] == 0.9
    assert found["eval/recovery/64"] == 97.5
    assert found["train/loss"] == 0.4


def test_the_table_is_written(run_dir: Path, summary: dict[str, Any]) -> None:
    entry = summary["summary"]["perplexity"]
    assert (entry["_type"], entry["nrows"], entry["ncols"]) == ("table-file", 2, 2)
    table = json.loads((log_file(run_dir).parent / "files" / entry["path"]).read_text())
    assert table["columns"] == ["model", "ppl 64"]
    assert table["data"] == [["native", 8.5], ["scaled", None]]


def test_the_plot_is_written(run_dir: Path, summary: dict[str, Any]) -> None:
    entry = summary["summary"]["plots/a"]
    assert entry["_type"] == "plotly-file"
    plot = json.loads((log_file(run_dir).parent / "files" / entry["path"]).read_text())
    assert plot["data"][0]["y"] == [3, 4]


def test_the_model_is_an_artifact_when_asked_for(run_dir: Path, tmp_path: Path) -> None:
    (model,) = [a for a in records(log_file(run_dir))["artifact"] if a["type"] == "model"]
    assert model["name"] == "a-model"
    assert [file["path"] for file in model["manifest"]["contents"]] == ["config.json"]
    tracker = start(replace(OFFLINE, artifact="none"), tmp_path)
    tracker.log_model(run_dir / "export", name="a-model")
    tracker.finish(succeeded=True)
    assert not records(log_file(tmp_path))["artifact"]


def test_success_is_exit_code_0(summary: dict[str, Any]) -> None:
    assert summary["exit_code"] == 0
    assert summary["state"] == "finished"


def test_failure_is_exit_code_1(tmp_path: Path) -> None:
    tracker = start(OFFLINE, tmp_path)
    tracker.log({"tokens": 1}, step=1)
    tracker.finish(succeeded=False)
    summary = json.loads(inspect(log_file(tmp_path), "--summary"))
    assert summary["exit_code"] == 1
    assert summary["state"] == "failed"


def test_no_secret_is_written(run_dir: Path) -> None:
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert log_file(run_dir) in files
    assert not [path for path in files if API_KEY.encode() in path.read_bytes()]


def test_a_long_text_is_cut_and_a_deep_config_is_flat() -> None:
    deep = {"a": {"b": {"c": {"d": {"e": 1}}}}, "empty": {}, "text": "x" * 5000, "none": None}
    flat = tracking.flattened(deep | {"many": list(range(5000)), "nested": [{"a": 1}]})
    assert flat["a/b/c/d/e"] == 1
    assert (flat["none"], flat["empty"], flat["nested"]) == (None, {}, [{"a": 1}])
    assert flat["text"] == "x" * 4096 + "... (5,000 characters)"
    assert all(len(str(value)) < 4200 for value in flat.values())
    assert not [key for key in flat if "." in key]


def test_how_it_is_sent_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(OFFLINE, tmp_path).finish(succeeded=False)
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in capsys.readouterr().out


def test_a_resumed_job_keeps_its_id(tmp_path: Path) -> None:
    """W&B puts files of one id together when they are sent, in the order of their starts."""
    for tokens in (1, 2):
        tracker = start(OFFLINE, tmp_path)
        tracker.log({"tokens": tokens}, step=tokens)
        tracker.finish(succeeded=tokens == 2)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert {records(file)["run"][0]["run_id"] for file in files} == {"20260101-000000-abc"}


def test_a_workspace_and_a_report_are_built_offline() -> None:
    scores = ["eval/recovery/512", "eval/gap_closed/512"]
    view = tracking.workspace("a-project", "a-team", scores)
    assert [section.name for section in view.sections] == ["Scores", "Training"]
    text = json.dumps(view._to_model().model_dump(mode="json"))
    assert all(name in text for name in [*scores, "train/loss", "flops", "tokens"])
    written = tracking.report("a-project", "a-team", scores)
    bars, curves = [block for block in written.blocks if hasattr(block, "panels")]
    assert [panel.metrics for panel in bars.panels] == [[score] for score in scores]
    assert [panel.x for panel in curves.panels][:3] == ["tokens", "flops", "seconds"]
    assert len(tracking.report("a-project", "a-team", []).blocks) == 2


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """W&B's interface to a project with one run, and what is made of its scores."""
    summary = dict.fromkeys(
        [
            "eval/gap_closed/512",
            "eval/final/short/average/recovery",
            "eval/final/short/sciq",
            "train/loss",
        ]
    )
    api = SimpleNamespace(
        default_entity="a-team", runs=lambda path: [SimpleNamespace(summary=summary)], made=[]
    )

    def build(project: str, entity: str, scores: list[str]) -> SimpleNamespace:
        api.made.append((project, entity, scores))
        return SimpleNamespace(save=lambda: SimpleNamespace(url="https://there"))

    monkeypatch.setattr("wandb.Api", lambda: api)
    monkeypatch.setattr(tracking, "workspace", build)
    monkeypatch.setattr(tracking, "report", build)
    return api


def test_a_report_shows_scores_of_every_suite(online: SimpleNamespace) -> None:
    assert tracking.publish_report("a-project") == ["https://there"] * 2
    scores = ["eval/final/short/average/recovery", "eval/gap_closed/512"]
    assert online.made == [("a-project", "a-team", scores)] * 2


def test_a_login_without_an_entity_is_told_what_to_do(online: SimpleNamespace) -> None:
    online.default_entity = None
    with pytest.raises(tracking.TrackingError, match=r"^entity: your login has no default entity"):
        tracking.publish_report("a-project")


def test_publishing_without_a_login_says_what_to_do(tmp_path: Path) -> None:
    program = (
        "from src import tracking\n"
        "try:\n    tracking.publish_report('a-project', 'a-team')\n"
        "except tracking.TrackingError as error:\n    print(error)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    homeless = environment | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=homeless, capture_output=True, text=True
    )
    assert "type `wandb login`, or set WANDB_API_KEY" in done.stdout, done.stderr


def test_runs_of_one_process_do_not_merge(tmp_path: Path) -> None:
    """Multirun jobs follow each other in one process."""
    for name, tokens in (("one", 10), ("two", 20)):
        tracker = start(OFFLINE, tmp_path / name, run_id=name)
        tracker.log({"tokens": tokens}, step=1)
        tracker.finish(succeeded=True)
    for name, tokens in (("one", 10), ("two", 20)):
        found = records(log_file(tmp_path / name))
        assert [run["run_id"] for run in found["run"]] == [name]
        assert [entry["item"]["tokens"] for entry in found["history"]] == [tokens]


@pytest.fixture
def init_arguments(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What wandb.init is called with, without calling it."""

    def asked(config: TrackingConfig, run_dir: Path) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def init(**arguments: Any) -> SimpleNamespace:
            seen.update(arguments)
            return SimpleNamespace(define_metric=lambda *args, **kwargs: None)

        fake = SimpleNamespace(init=init, Settings=lambda **settings: settings)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        start(config, run_dir)
        return seen

    return asked


def test_a_resumed_job_goes_on_in_the_same_online_run(
    tmp_path: Path, init_arguments: Callable[..., dict[str, Any]]
) -> None:
    online = replace(OFFLINE, mode="online", entity="a-team")
    asked = init_arguments(online, tmp_path)
    assert (asked["mode"], asked["resume"]) == ("online", "allow")
    assert (asked["id"], asked["entity"]) == ("20260101-000000-abc", "a-team")
    assert asked["dir"] == str(tmp_path)


def test_code_and_console_stay_here(
    tmp_path: Path, init_arguments: Callable[..., dict[str, Any]]
) -> None:
    asked = init_arguments(OFFLINE, tmp_path)
    assert (asked["mode"], asked["resume"]) == ("offline", None)
    settings = asked["settings"]
    assert settings["console"] == "off"
    assert settings["disable_git"]
    assert not settings["save_code"]


def test_disabled_records_nothing(tmp_path: Path) -> None:
    tracker = start(replace(OFFLINE, mode="disabled"), tmp_path)
    assert type(tracker) is Tracker
    tracker.log({"tokens": 1}, step=1)
    tracker.log_table("t", ["a"], [[1]])
    tracker.summarize({"a": 1})
    tracker.log_figures({})
    tracker.log_model(tmp_path, name="m")
    tracker.finish(succeeded=True)
    assert list(tmp_path.iterdir()) == []


def test_disabled_imports_no_wandb(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from src.tracking import TrackingConfig, start\n"
        "start(TrackingConfig('disabled', 'p'), run_dir=Path('.'), run_id='r', name='n',\n"
        "      job_type='j', tags=[], settings={}).finish(succeeded=True)\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'wandb'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_names_of_a_step() -> None:
    metrics = {"tokens": 1, "loss/total": 2.0, "loss/relation/qq": 3.0, "lr": 4.0, "eval/x": 5.0}
    assert tracking.tracked(metrics | {"loss/drift": [6.0]}) == {
        "tokens": 1,
        "train/loss": 2.0,
        "train/loss/relation/qq": 3.0,
        "train/lr": 4.0,
        "eval/x": 5.0,
        "layers/drift/0": 6.0,
    }


TENSORBOARD = replace(OFFLINE, mode="tensorboard")


def test_tensorboard_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(tracking.TrackingError, match=r"tracking\.mode: tensorboard .* make setup"):
        tracking.check(TENSORBOARD)
    tracking.check(OFFLINE)


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    tracker = start(TENSORBOARD, tmp_path)
    tracker.log({"tokens": 5, "loss/total": 2.0, "loss/by_layer": [1.0, None]}, step=1)
    tracker.summarize({"eval/final/perplexity/512": 7.5, "name": "ignored"})
    tracker.log_table("perplexity", ["model"], [["native"]])
    tracker.finish(succeeded=True)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # records: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
        data = data[16 + length :]
    assert found["train/loss"] == (1, 2.0)
    assert found["eval/final/perplexity/512"] == (1, 7.5)
    assert not any("layers" in tag and tag.endswith("/1") for tag in found)
    assert any(tag.startswith("perplexity") for tag in found)
