"""Weights & Biases, the only importer of wandb.

A tracker starts once a job and is finished whatever happens. `metrics.jsonl` and `run.json` are
written elsewhere, whatever the tracker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class TrackingConfig:
    """What goes to Weights & Biases.

    Attributes:
        mode: `offline` writes into the run folder for a later `wandb sync`; `online` needs a login.
        project, entity: where the runs go; without an entity to the login's own.
        group: of the run; without one, the sweep's name.
        artifact: `export` makes an artifact of the final model.
    """

    mode: Literal["disabled", "offline", "online"]
    project: str
    entity: str | None = None
    group: str | None = None
    artifact: Literal["none", "export"] = "none"


class Tracker(Protocol):
    """Where a run's figures go besides its folder."""

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Record scalars at an optimizer step."""
        ...

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set final values of the run."""
        ...

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table of results."""
        ...

    def finish(self, *, succeeded: bool) -> None:
        """Close the run."""
        ...


class NullTracker:
    """Records nothing: for `tracking=none` and for ranks other than 0."""

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Do nothing."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def finish(self, *, succeeded: bool) -> None:
        """Do nothing."""


class WandbTracker:
    """One W&B run. Its id is the run folder's, so that a resumed job goes on in the same run."""

    def __init__(
        self,
        config: TrackingConfig,
        *,
        run_dir: Path,
        run_id: str,
        name: str,
        job_type: str,
        tags: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            id=run_id,
            name=name,
            job_type=job_type,
            tags=list(tags),
            config=dict(settings),
            dir=str(run_dir),
            mode="online" if config.mode == "online" else "offline",
            resume="allow" if config.mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Record scalars; lists become one scalar an element."""
        flat: dict[str, Any] = {}
        for key, value in metrics.items():
            if isinstance(value, list):
                flat.update({f"{key}/{i}": v for i, v in enumerate(value)})
            else:
                flat[key] = value
        self._run.log(flat, step=step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set summary values."""
        self._run.summary.update(dict(values))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a W&B table."""
        self._run.log(
            {name: self._wandb.Table(columns=list(columns), data=[list(r) for r in rows])}
        )

    def finish(self, *, succeeded: bool) -> None:
        """Close the run with exit code 0 or 1."""
        self._run.finish(exit_code=0 if succeeded else 1)


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
    """The tracker that the config asks for."""
    if config.mode == "disabled":
        return NullTracker()
    return WandbTracker(
        config,
        run_dir=run_dir,
        run_id=run_id,
        name=name,
        job_type=job_type,
        tags=tags,
        settings=settings,
    )


def agent_run_id(environment): return None
def sync_hint(p): return "wandb sync "+p
