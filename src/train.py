"""Train: compose, plan, prepare, launch.

python -m src.train +experiment=linearard_32k            the paper's run
python -m src.train +experiment=quickstart               the main job, small, on a CPU
python -m src.train +experiment=... dry_run=true         print the plan and stop
python -m src.train +experiment=... prepare=true         fetch what the run reads and stop
python -m src.train resume=RUN_DIR                       go on from the newest checkpoint
python -m src.train -m +experiment=... +sweeps=NAME      a sweep (src/multirun/)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from src import command
from src.multirun import composition
from src.multirun.composition import identity
from src.planning import checks, plan
from src.planning.printing import show
from src.settings import loading
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training import launch


def _check_sweep(settings: RunConfig) -> None:
    """Refuse a job whose config has changed since its sweep was planned."""
    if settings.sweep is not None and settings.sweep.hash != identity(settings):
        raise ConfigError(
            f"sweep.hash: job {settings.sweep.job} of {settings.sweep.name} was planned with other "
            "settings than conf/ gives now; start the sweep again"
        )


def _resume(composed: DictConfig, world: launch.World | None) -> None:
    """Go on with a run; only the number of ranks may differ from its config."""
    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
    ranks = [o for o in overrides if o.startswith(("launch=", "launch."))]
    if others := [o for o in overrides if o not in ranks]:
        raise ConfigError(
            f"resume={composed.resume} goes on with the run's own config; drop {' '.join(others)}"
        )
    chosen = loading.load(RunConfig, composed).launch if ranks else None
    from src.training import start

    start.resume(Path(os.path.expanduser(composed.resume)), world, chosen)


def _prepare(runs: Iterable[RunConfig]) -> None:
    from src.training import preparing  # loads torch, which a sweep does without

    preparing.prepare(runs)


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@command.job
def _app(composed: DictConfig) -> None:
    world = launch.world_from_environment(os.environ)
    if composed.resume is not None:
        _resume(composed, world)
        return
    if (name := HydraConfig.get().runtime.choices.get("sweeps")) is not None:
        raise ConfigError(f"+sweeps={name} is many runs: add -m")
    settings = loading.load(RunConfig, composed)
    if settings.prepare:
        _prepare([settings])
        return
    checks.check_launch(settings.launch, world.size if world else None, dry_run=settings.dry_run)
    checks.check_machine(settings)
    _check_sweep(settings)
    if settings.dry_run:
        size = world.size if world else settings.launch.ranks
        show(plan.make(settings, world_size=size), settings, Console())
        return
    # Imported here because torch takes seconds to load, and the plan does without it.
    with launch.uncollected():
        from src.training import start
    start.train(settings, world)


@command.job
def _typed(arguments: list[str]) -> None:
    composition.register()
    # Hydra reads the command line itself.
    sys.argv[1:] = arguments = loading.completed(arguments)
    overrides = composition.wanted(arguments)
    if overrides is None:
        _app()
    else:
        from src.multirun import driver

        sys.exit(driver.run(overrides, _prepare))


def main() -> None:
    """Entry point."""
    command.run(lambda: _typed(sys.argv[1:]), RunConfig)


if __name__ == "__main__":
    main()
