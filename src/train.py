"""Train: compose, plan, prepare, launch.

python -m src.train +experiment=linearard_32k            the paper's run
python -m src.train +experiment=quickstart               the main job, small, on a CPU
python -m src.train +experiment=... dry_run=true         print the plan and stop
python -m src.train resume=RUN_DIR                       go on from the newest checkpoint
python -m src.train -m +experiment=... +sweeps=NAME      a sweep (src/multirun/)
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from src import command, tracking
from src.evals import running
from src.models.sources import check_available
from src.multirun import composition, driver
from src.multirun.identity import identity
from src.planning import plan
from src.planning.advice import check_fits
from src.planning.devices import uses_cuda
from src.planning.printing import show
from src.run_folder import (
    LOCK,
    RunFolder,
    RunFolderError,
    check_unused,
    command_line,
    device_name,
    git_state,
    new_run_id,
    versions,
)
from src.settings import loading, strict
from src.settings.config import LaunchConfig, RunConfig
from src.settings.strict import ConfigError
from src.training import checkpoint, launch, run
from src.training.checkpoint import CheckpointError
from src.training.launch import World

ROOT = Path(__file__).resolve().parents[1]


def train(settings: RunConfig, world: World | None) -> Path:
    """Prepare and run; returns the run folder.

    Args:
        settings: the accepted config.
        world: this process's rank where a launcher started it, None otherwise.

    Raises:
        ConfigError, DataError, ModelError, RunFolderError, AssetError: a user's mistake, before a
            run folder is made.
    """
    if world is None:
        new = _prepare(settings, settings.launch.nproc)
        with _held(new.path):
            _run_here(settings, new.create())
        return new.path
    with launch.joined(world, cuda=uses_cuda(settings.engine.device)), ExitStack() as held:
        path = None
        if world.is_main:
            new = _prepare(settings, world.size)
            held.enter_context(_held(new.path))
            path = new.create().path
        path = _agree(path)
        run.execute(settings, RunFolder.open(path), world)
        if world.is_main:
            print(f"run folder: {path}")
    return path


def resume(run_dir: Path, world: World | None) -> None:
    """Go on with a run from its newest complete checkpoint, with its own config.

    Raises:
        RunFolderError: the folder is not a run's folder.
        CheckpointError: another number of ranks wrote the checkpoint, or it cannot be read.
        ConfigError: the run's launcher has not started this process, or its texts have changed.
    """
    folder = RunFolder.open(run_dir)
    settings = strict.load_plain(RunConfig, folder.config())
    state = folder.record()["state"]
    if state == "finished":
        print(f"{run_dir} is finished; nothing is left to do")
        return
    if settings.launch.by != "local":
        _check_launch(settings.launch, world, dry_run=False)
    newest = checkpoint.newest(folder)
    size = world.size if world else settings.launch.nproc
    if newest and newest[1].world_size != size:
        raise CheckpointError(
            f"{newest[0]} was written by {newest[1].world_size} ranks and cannot be read by "
            f"{size}: resume with the same number"
        )
    where = f"step {newest[1].step}" if newest else "the start: it has no whole checkpoint"
    with ExitStack() as held:
        if world is None or world.is_main:
            held.enter_context(_held(run_dir))
            print(f"resuming {run_dir} from {where}", file=sys.stderr)
            data = _preflight(settings)
            if data.fingerprints() != folder.record()["data_fingerprint"]:
                raise ConfigError(
                    f"data: the texts or the tokenizer are no longer those that {run_dir} began "
                    "with: restore them, or start a new run"
                )
            folder.update(state="running", error=None, finished_at=None, corpus=data.corpus.key)
        if world is None:
            _run_here(settings, folder)
        else:
            run.execute(settings, folder, world)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Lock the folder against other processes. The system unlocks it when this process ends.

    Raises:
        RunFolderError: another process has locked it.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(f"{path} is being run by another process") from None
    try:
        yield
    finally:
        lock.release()


def _run_here(settings: RunConfig, folder: RunFolder) -> None:
    """Run on this machine: in this process, or in ranks of its own."""
    if settings.launch.nproc == 1:
        run.execute(settings, folder, World())
    else:
        _run_ranks(settings, folder)
    print(f"run folder: {folder.path}")


def _run_ranks(settings: RunConfig, folder: RunFolder) -> None:
    try:
        with run.stoppable():
            program = ["-m", "src.training.rank", str(folder.path)]
            launch.spawn(program, nproc=settings.launch.nproc, logs=folder.logs)
    except launch.LaunchError as error:
        # Rank 0 may have been stopped before it could record why.
        reason = str(error).splitlines()[-1]
        folder.end("failed", reason)
        raise
    except KeyboardInterrupt:
        folder.end("interrupted", f"stopped; go on with resume={folder.path}")
        raise


@dataclass(frozen=True)
class _NewRun:
    """A run that may start: its folder, its config, and the first entries of its record."""

    path: Path
    config: dict[str, Any]
    record: dict[str, Any]

    def create(self) -> RunFolder:
        return RunFolder.create(self.path, config=self.config, record=self.record)


def _prepare(settings: RunConfig, world_size: int) -> _NewRun:
    """Check everything that can be checked without loading a model."""
    _check_sweep(settings)
    path = Path(settings.run_dir) if settings.run_dir else _new_path(settings)
    check_unused(path)
    made = plan.make(settings, world_size=world_size)
    show(made, settings, Console(stderr=True))
    check_fits(made, settings)
    data = _preflight(settings)
    accepted = replace(settings, run_dir=str(path), resume=None)
    record: dict[str, Any] = {
        "run_id": _run_id(settings, path),
        "experiment": settings.experiment,
        "method": settings.recipe.name,
        "model": settings.model.name,
        "seed": settings.seed,
        "sweep": asdict(settings.sweep) if settings.sweep else None,
        "command": command_line(sys.argv),
        "device": device_name(),
        "world_size": world_size,
        "versions": versions(),
        "corpus": data.corpus.key,
        "data_fingerprint": data.fingerprints(),
        **git_state(ROOT),
    }
    return _NewRun(path, _plain(accepted), record)


def _check_sweep(settings: RunConfig) -> None:
    """Refuse a job whose config has changed since its sweep was planned."""
    if settings.sweep is not None and settings.sweep.hash != identity(settings):
        raise ConfigError(
            f"sweep.hash: job {settings.sweep.job} of {settings.sweep.name} was planned with other "
            "settings than conf/ gives now; start the sweep again"
        )


def _run_id(settings: RunConfig, path: Path) -> str:
    """The run's id, also for the tracker.

    A job of a sweep keeps its id when it starts over. An agent of W&B chooses the id itself.
    """
    if settings.sweep is not None:
        return f"{settings.sweep.id}-{settings.sweep.hash[:8]}"
    chosen = tracking.agent_run_id(os.environ)
    if chosen is not None:
        return chosen
    return new_run_id() if settings.run_dir else path.name


def _new_path(settings: RunConfig) -> Path:
    return Path("outputs") / settings.experiment / new_run_id()


# The command to type on every machine, or once if the launcher reaches the others.
_LAUNCHERS = {
    "torchrun": "torchrun --nnodes={nodes} --nproc-per-node={nproc} --rdzv-backend=c10d "
    "--rdzv-endpoint=HOST:29400 -m src.train ...",
    "deepspeed": "deepspeed --hostfile=HOSTS --num_nodes={nodes} --num_gpus={nproc} "
    "--module src.train ...",
    "slurm": "srun --nodes={nodes} --ntasks-per-node={nproc} python -m src.train ...",
}


def _check_launch(asked: LaunchConfig, world: World | None, *, dry_run: bool) -> None:
    """Refuse a run with other ranks than its settings say.

    Raises:
        ConfigError: the launcher of the settings has started no ranks, or another number.
    """
    if world is not None and asked.by == "local" and asked.nproc > 1:
        raise ConfigError(
            f"launch.nproc: {asked.nproc} ranks are asked for, but a launcher has started "
            f"{world.size} already; leave launch.nproc at 1"
        )
    if asked.by == "local":
        return
    command = _LAUNCHERS[asked.by].format(nodes=asked.nodes, nproc=asked.nproc)
    if world is None and not dry_run:
        raise ConfigError(f"launch.by: {asked.by} has not started this process; type {command}")
    if world is not None and world.size != asked.ranks:
        raise ConfigError(
            f"launch: {asked.nodes} x {asked.nproc} ranks are asked for and {world.size} have been "
            f"started; set launch.nodes and launch.nproc, or type {command}"
        )


def _preflight(settings: RunConfig) -> run.Data:
    """Fetch or find the model and the text; refuse too little text."""
    if settings.engine.device == "cuda" and not uses_cuda("cuda"):
        raise ConfigError(
            "engine.device: cuda is asked for, but torch sees no GPU; use cpu or auto"
        )
    if uses_cuda(settings.engine.device) and settings.launch.nproc > torch.cuda.device_count():
        raise ConfigError(
            f"launch.nproc: {settings.launch.nproc} ranks need as many GPUs, and this machine has "
            f"{torch.cuda.device_count()}"
        )
    if settings.engine.student.offload_optimizer:
        _check_compiler(
            "engine.student.offload_optimizer: DeepSpeed compiles its AdamW for CPUs",
            "offload_optimizer=false",
            tools=("ninja",),
        )
    if settings.engine.compile and not uses_cuda(settings.engine.device):
        _check_compiler("engine.compile: torch compiles the layers", "compile=false")
    check_available(settings.model)
    data = run.prepare_data(settings)
    if refused := running.problems(settings):
        raise ConfigError("\n".join(refused))
    return data


def _check_compiler(why: str, instead: str, tools: Sequence[str] = ()) -> None:
    """Refuse compilation without a compiler now, before the models are loaded."""
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    missing = [] if shutil.which(compiler) else [f"the C++ compiler {compiler}"]
    missing += [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"{why}, and {' and '.join(missing)} cannot be found; install what is missing (CXX "
            f"names another compiler), or leave {instead}"
        )


def _agree(path: Path | None) -> Path:
    """Rank 0's run folder, sent to all ranks."""
    from torch import distributed

    told = [None if path is None else str(path)]
    distributed.broadcast_object_list(told, src=0)
    assert told[0] is not None
    return Path(told[0])


def _plain(settings: RunConfig) -> dict[str, Any]:
    """The config as containers for YAML, which the boundary accepts again."""

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [listed(inner) for inner in value]
        return value

    return listed(asdict(settings))


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@command.job
def _app(composed: DictConfig) -> None:
    world = launch.world_from_environment(os.environ)
    if composed.resume is not None:
        others = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        if others:
            raise ConfigError(
                f"resume={composed.resume} goes on with the run's own config; "
                f"drop {' '.join(others)}"
            )
        resume(Path(composed.resume), world)
        return
    if (name := HydraConfig.get().runtime.choices.get("sweeps")) is not None:
        raise ConfigError(f"+sweeps={name} is many runs: add -m")
    settings = loading.load(RunConfig, composed)
    _check_launch(settings.launch, world, dry_run=settings.dry_run)
    if settings.dry_run:
        size = world.size if world else settings.launch.ranks
        show(plan.make(settings, world_size=size), settings, Console())
        return
    train(settings, world)


@command.job
def _typed(arguments: list[str]) -> None:
    composition.register()
    overrides = driver.wanted(arguments)
    if overrides is None:
        _app()
    else:
        sys.exit(driver.run(overrides))


def main() -> None:
    """Entry point."""
    command.run(lambda: _typed(sys.argv[1:]), RunConfig)


if __name__ == "__main__":
    main()
