"""Weights & Biases and TensorBoard; the only importer of wandb.

Each job starts one tracker and closes it, however the job ends. `metrics.jsonl` and `run.json` are
written by other modules, with any tracker.
"""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from src import environment

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from wandb import Run
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces.interface import Workspace

# W&B shows three levels of a nested config, and wants values below a megabyte. So configs are
# flattened, and long texts are cut; the run folder's config.yaml holds all of them.
SEPARATOR = "/"
LONGEST_VALUE = 4096
# The x-axes of curves; the first is W&B's default.
X_AXES = ("tokens", "flops", "seconds")
_OF_A_STEP = ("lr", "grad_norm", "tokens_per_second")


@dataclass(frozen=True)
class TrackingConfig:
    """Settings of the tracker.

    Attributes:
        mode: `offline` writes W&B's files into the run folder for a later `wandb sync`; `online`
            needs a login; `tensorboard` writes TensorBoard's files into the run folder.
        project, entity: where the runs go; without an entity, that of the login.
        group: group of the run; without one, the sweep's name.
        artifact: `export` makes an artifact of the final model.
    """

    mode: Literal["disabled", "offline", "online", "tensorboard"]
    project: str
    entity: str | None = None
    group: str | None = None
    artifact: Literal["none", "export"] = "none"

    def __post_init__(self) -> None:
        if self.mode == "disabled":
            return
        for key, name in (("project", self.project), ("entity", self.entity)):
            if name is not None and not _NAME.fullmatch(name):
                raise ValueError(
                    f"{key}={name[:80]!r}: W&B takes 1 to 128 characters, without {_FORBIDDEN}; "
                    "give another name"
                )
        if self.group is not None and not 0 < len(self.group) <= 128:
            raise ValueError(f"group={self.group[:80]!r}: W&B takes 1 to 128 characters")


_FORBIDDEN = "/ \\ # ? % : and control characters"
_NAME = re.compile(r"[^/\\#?%:\x00-\x1f\x7f]{1,128}")


def check_tags(config: TrackingConfig, tags: Sequence[str]) -> None:
    """Refuse what W&B would refuse when the run has begun.

    Raises:
        ValueError: a tag that is too long, or empty.
    """
    if config.mode == "disabled":
        return
    for tag in tags:
        if not 0 < len(tag) <= 64:
            raise ValueError(f"tags: {tag[:80]!r}: W&B takes 1 to 64 characters; shorten it")


def check_login(config: TrackingConfig) -> None:
    """Refuse to track online without a login.

    Raises:
        TrackingError: there is neither a key in the environment nor one in the user's netrc file.
    """
    try:
        known = config.mode != "online" or has_login()
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        raise TrackingError(
            f"tracking.mode: online needs a login to {server()}: type `wandb login`, set "
            "WANDB_API_KEY, or use tracking=wandb_offline"
        )


def server() -> str:
    """The address of W&B's server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def has_login() -> bool:
    """Whether W&B's server knows the user, by the environment or by the user's netrc file.

    Raises:
        OSError, netrc.NetrcParseError: that file cannot be read.
    """
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    host = urlsplit(server()).hostname or server()
    return file.exists() and netrc.netrc(file).authenticators(host) is not None


class Tracker:
    """Receives a run's figures, which its folder also holds.

    This one records nothing: it serves `tracking=none`, and ranks other than 0.
    """

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Record the metrics of an optimizer step; a list becomes one scalar for each element."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set final values of the run."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table of results."""

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Record interactive plots by name."""

    def log_model(self, folder: Path, *, name: str) -> None:
        """Make an artifact of an exported model, with `tracking.artifact=export`."""

    def finish(self, *, succeeded: bool) -> None:
        """Close the run; print how to send an offline run."""


class WandbTracker(Tracker):
    """One W&B run. It has the id of the run folder, so a resumed job goes on in the same run."""

    def __init__(self, config: TrackingConfig, run: Run, run_dir: Path) -> None:
        self._config, self._run, self._run_dir = config, run, run_dir

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        self._run.log(tracked(metrics), step=step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        data = environment.all_redacted([list(row) for row in rows])
        self._run.log({name: wandb.Table(columns=list(columns), data=data)})

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        import wandb

        if figures:
            self._run.log({name: wandb.Plotly(figure) for name, figure in figures.items()})

    def log_model(self, folder: Path, *, name: str) -> None:
        import wandb

        if self._config.artifact == "export":
            artifact = wandb.Artifact(name, type="model")
            artifact.add_dir(str(folder), policy="immutable")  # not copied a second time
            self._run.log_artifact(artifact)

    def finish(self, *, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)
        if self._config.mode == "offline":
            print(sync_hint(str(self._run_dir)))


class TensorBoardTracker(Tracker):
    """Event files in the run folder's `tensorboard/`; a resumed job adds a file."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(logdir=str(run_dir / "tensorboard"))
        listed = (f"    {key}: {value}" for key, value in flattened(settings).items())
        self._writer.add_text("settings", "\n".join(listed))
        self._step = 0

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        self._step = step
        for key, value in tracked(metrics).items():
            if value is not None:
                self._writer.add_scalar(key, value, step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, self._step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
        self._writer.add_text(name, environment.redacted(text), self._step)

    def finish(self, *, succeeded: bool) -> None:
        self._writer.close()


def tracked(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by the names that trackers show: training below `train/`, layers below `layers/`.

    `loss/total` becomes `train/loss`, `loss/relation/qq` `train/loss/relation/qq`, and `lr`
    `train/lr`. A list becomes one number for each layer: `loss/relation/by_layer` gives
    `layers/relation/0` and so on. Other names, those of x-axes and of evaluations, stay.
    """
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, list):
            name = key.removeprefix("loss/").removesuffix("/by_layer")
            flat |= {f"layers/{name}/{i}": element for i, element in enumerate(value)}
        elif key == "loss/total":
            flat["train/loss"] = value
        elif key.startswith("loss/") or key in _OF_A_STEP:
            flat[f"train/{key}"] = value
        else:
            flat[key] = value
    return flat


def check(config: TrackingConfig) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        TrackingError: with the remedy.
    """
    if config.mode == "tensorboard" and find_spec("tensorboardX") is None:
        raise TrackingError(
            "tracking.mode: tensorboard needs the package tensorboardX, which is not installed; "
            "type make setup, or use tracking=wandb_offline or tracking=none"
        )


def start(
    config: TrackingConfig,
    *,
    run_dir: Path,
    run_id: str,
    name: str,
    job_type: str,
    tags: Sequence[str],
    settings: Mapping[str, Any],
) -> Tracker:
    """The tracker of the config.

    It gets no values of environment variables, but for those in the project and the entity, which
    are where the run goes.
    """
    settings = environment.all_redacted(settings)
    if config.mode == "disabled":
        return Tracker()
    if config.mode == "tensorboard":
        return TensorBoardTracker(run_dir, settings)
    import wandb

    # Its metadata has the command.
    (run_dir / "wandb").mkdir(mode=0o700, parents=True, exist_ok=True)
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        group=config.group and environment.redacted(config.group),
        id=run_id,
        name=environment.redacted(name),
        job_type=environment.redacted(job_type),
        tags=environment.all_redacted(list(tags)),
        config=flattened(settings),
        dir=str(run_dir),
        mode=config.mode,
        resume="allow" if config.mode == "online" else None,
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
    )
    for axis in X_AXES:
        run.define_metric(axis)
    run.define_metric("*", step_metric=X_AXES[0])
    return WandbTracker(config, run, run_dir)


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as one level of keys, `recipe/stages/ard/lr`; cuts texts beyond 4096 characters."""
    return dict(_leaves("", settings))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}{SEPARATOR}{key}" if path else str(key), inner)
    elif isinstance(value, (list, tuple)):
        listed = list(value)
        yield path, listed if len(str(listed)) <= LONGEST_VALUE else _cut(str(listed))
    else:
        yield path, _cut(value) if isinstance(value, str) else value


def _cut(text: str) -> str:
    if len(text) <= LONGEST_VALUE:
        return text
    return f"{text[:LONGEST_VALUE]}... ({len(text):,} characters)"


def sync_hint(folders: str) -> str:
    """The command that sends the offline runs of run folders."""
    return f"to send it to W&B: wandb sync {folders}/wandb/offline-run-*"


def agent_run_id(environment: Mapping[str, str]) -> str | None:
    """The id that the agent of a W&B sweep has given this run; None without an agent."""
    return environment.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in environment else None


class TrackingError(ValueError):
    """W&B cannot do this; the message says what is missing."""


def publish_report(project: str, entity: str | None = None) -> list[str]:
    """Make a workspace view and a report of a project's runs; returns the addresses of both.

    Without an `entity`, the project is one of the login.

    Raises:
        TrackingError: there is no login, or W&B refuses.
    """
    import wandb
    from wandb.errors import CommError, UsageError

    try:
        api = wandb.Api()
        entity = entity or api.default_entity
        if not entity:
            raise TrackingError("entity: your login has no default entity; set entity=NAME")
        runs = api.runs(f"{entity}/{project}")
        keys = sorted({key for run in runs for key in run.summary.keys()})  # noqa: SIM118
        scores = [key for key in keys if _SCORES & {*key.split("/")}]
        view, text = workspace(project, entity, scores), report(project, entity, scores)
        return [view.save().url, text.save().url]
    except UsageError as error:
        raise TrackingError(
            "target=wandb needs a login: type `wandb login`, or set WANDB_API_KEY. Without one, "
            "`python -m src.dashboard` writes the page"
        ) from error
    except TrackingError:
        raise
    except (CommError, ValueError) as error:
        raise TrackingError(f"W&B refuses {entity}/{project}: {error}") from error


# Parts of the names of scores, such as eval/gap_closed/2048 and eval/final/short/average/recovery.
_SCORES = {"recovery", "gap_closed", "recovery_vs_best"}


def workspace(project: str, entity: str, scores: Sequence[str]) -> Workspace:
    """A view of a project: scores, then training curves by tokens and by work; not saved.

    `scores` are summary values; each gets a bar chart.
    """
    import wandb_workspaces.workspaces.interface as ws

    curves = ws.Section(name="Training", panels=list(_curves()), is_open=True)
    bars = [ws.Section(name="Scores", panels=list(_bars(scores)), is_open=True)] if scores else []
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Context extension",
        sections=[*bars, curves],
        settings=ws.WorkspaceSettings(x_axis=X_AXES[0]),
    )


def report(project: str, entity: str, scores: Sequence[str]) -> Report:
    """The same as a report with panels, with runs grouped by sweep; not saved."""
    import wandb_workspaces.reports.v2.interface as wr

    def grid(panels: Iterator[Any]) -> wr.PanelGrid:
        runs = wr.Runset(entity=entity, project=project, groupby=["Group"])
        return wr.PanelGrid(runsets=[runs], panels=list(panels))

    bars = [wr.H2(text="Scores"), grid(_bars(scores))] if scores else []
    return wr.Report(
        project=project,
        entity=entity,
        title="Context extension: methods compared",
        description="Short-text skills restored after RoPE scaling, by method, tokens and sweep.",
        blocks=[*bars, wr.H2(text="Training"), grid(_curves())],
        width="fluid",
    )


def _bars(scores: Sequence[str]) -> Iterator[Any]:
    import wandb_workspaces.reports.v2.interface as wr

    for score in scores:
        yield wr.BarPlot(title=score.removeprefix("eval/"), metrics=[score])


def _curves() -> Iterator[Any]:
    import wandb_workspaces.reports.v2.interface as wr

    for axis in X_AXES:
        yield wr.LinePlot(title=f"loss by {axis}", x=axis, y=["train/loss"], smoothing_factor=0.6)
    yield wr.LinePlot(
        title="relations by tokens", x=X_AXES[0], metric_regex="train/loss/relation/[qkv]."
    )
    yield wr.LinePlot(title="gradient norm", x=X_AXES[0], y=["train/grad_norm"], log_y=True)
