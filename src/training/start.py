"""Starts a run, or goes on with one: checks, plans, prepares, makes the folder, launches."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from src import run_folder, tracking
from src.models.sources import identity
from src.planning import plan
from src.planning.advice import check_fits
from src.planning.checks import check_launch, check_machine
from src.planning.devices import uses_cuda
from src.planning.printing import show, show_texts
from src.progress import Laps
from src.run_folder import RunFolder, RunFolderError, whole_checkpoints
from src.settings import strict
from src.settings.config import LaunchConfig, RunConfig
from src.settings.strict import ConfigError
from src.training import checkpoint, launch, preparing, run, texts
from src.training.checkpoint import Checkpoint
from src.training.launch import World
from src.training.publishing import check_push
from src.training.signals import Stopped, stoppable
from src.training.witness import witnessed

ROOT = Path(__file__).resolve().parents[2]
# Seconds to wait for a folder that another process holds.
_PATIENCE = 2.0


def train(settings: RunConfig, world: World | None, command: str | None = None) -> Path:
    """Prepare and run; returns the run folder.

    Args:
        world: this process's rank where a launcher started it, None otherwise.
        command: what starts the same run again; without it, this process's command line.

    Raises:
        ConfigError, DataError, ModelError, RunFolderError, AssetError: a user's mistake, before a
            run folder is made.
    """
    if _is_requeued(settings):
        # Slurm runs the same command again, which goes on with what it has begun.
        path = Path(settings.run_dir or "")
        resume(path, world)
        return path
    if world is None:
        with launch.uncollected(freezes=True):
            new = _prepare(settings, settings.launch.nproc, command)
        with _held(new.path):
            _run_here(new.settings, new.create())
        return new.path
    with launch.joined(world, cuda=uses_cuda(settings.engine.device)), ExitStack() as held:
        path = None
        if world.is_main:
            with launch.uncollected(freezes=True):
                new = _prepare(settings, world.size, command)
            held.enter_context(_held(new.path))
            path = new.create().path
        path = Path(launch.agreed(path and str(path)))
        folder = RunFolder.open(path)
        # Rank 0's plan has settled what `auto` leaves open.
        run.execute(strict.load_plain(RunConfig, folder.config()), folder, world)
        if world.is_main:
            print(f"run folder: {path}")
    return path


def _is_requeued(settings: RunConfig) -> bool:
    """Whether this is a Slurm job that was put back into the queue, with a run to go on with."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or settings.run_dir is None:
        return False
    return bool(whole_checkpoints(RunFolder(Path(settings.run_dir))))


def resume(run_dir: Path, world: World | None, ranks: LaunchConfig | None = None) -> None:
    """Go on with a run from its newest whole checkpoint, with its own config.

    Every file is verified first. What is damaged is said and left out.

    Args:
        world: this process's rank where a launcher started it, None otherwise.
        ranks: how many go on, if not as many as the run's config says.

    Raises:
        RunFolderError: the folder is not a run's folder.
        CheckpointError: the checkpoints are of other settings.
        ConfigError: the run's launcher has not started this process, or its texts have changed.
    """
    main = world is None or world.is_main
    restored = checkpoint.restore_records(RunFolder(run_dir)) if main else []
    folder = RunFolder.open(run_dir, "resume")
    settings = strict.load_plain(RunConfig, folder.config())
    if ranks is not None:
        settings = replace(settings, launch=ranks)
    if folder.record()["state"] == "finished":
        print(f"{run_dir} is finished; nothing is left to do")
        return
    if settings.launch.by != "local":
        check_launch(settings.launch, world.size if world else None, dry_run=False)
    size = world.size if world else settings.launch.nproc
    with ExitStack() as held:
        if main:
            held.enter_context(_held(run_dir))
            folder.remove_partials()
            chosen, skipped = checkpoint.verified(folder)
            for said in (*restored, *skipped, _going_on(folder, chosen, size)):
                print(said, file=sys.stderr)
            with launch.uncollected(freezes=True):
                data = _preflight(settings, Laps())
            if data.fingerprints() != folder.record()["data_fingerprint"]:
                raise ConfigError(
                    f"data: the texts or the tokenizer are no longer those that {run_dir} began "
                    "with: restore them, or start a new run (a run of a version that did not pack "
                    "blocks goes on with `packing: false` under `data` in its config.yaml)"
                )
            folder.update(
                state="running",
                error=None,
                finished_at=None,
                corpus=data.corpus.key,
                world_size=size,
            )
        if world is None:
            _run_here(settings, folder)
        else:
            run.execute(settings, folder, world)


def _going_on(folder: RunFolder, chosen: Checkpoint | None, size: int) -> str:
    if chosen is None:
        return f"resuming {folder.path} from the start: it has no whole checkpoint"
    position = chosen.position
    same = position.world_size == size
    ranks = "" if same else f", on {size} ranks instead of {position.world_size}"
    return f"resuming {folder.path} from step {position.step}{ranks}"


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Lock the folder against other processes. The system unlocks it when this process ends."""
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / run_folder.LOCK)
    try:
        # The witness of a killed process holds it for a moment.
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise RunFolderError(
            f"{path} is being run by another process: wait until it ends, or name another folder"
        ) from None
    with witnessed(path):
        try:
            yield
        except Stopped as stopped:
            if stopped.number == signal.SIGUSR1:
                # The time of this Slurm job is up: it goes back into the queue.
                job = os.environ["SLURM_JOB_ID"]
                subprocess.run(["scontrol", "requeue", job], check=True)
            raise Stopped(stopped.number, f"; go on with resume={path}") from stopped
        except Exception:
            if whole_checkpoints(RunFolder(path)):
                print(f"the run failed; go on with resume={path}", file=sys.stderr)
            raise
        finally:
            lock.release()


def _run_here(settings: RunConfig, folder: RunFolder) -> None:
    """Run on this machine: in this process, or in ranks of its own."""
    if settings.launch.nproc == 1 and settings.launch.max_restarts == 0:
        run.execute(settings, folder, World())
    else:
        _run_ranks(settings, folder)
    print(f"run folder: {folder.path}")


def _run_ranks(settings: RunConfig, folder: RunFolder) -> None:
    """Start ranks, and start them again from the newest checkpoint as often as is allowed."""
    most = settings.launch.max_restarts
    for restarts in range(most + 1):
        try:
            with stoppable():
                program = ["-m", "src.training.rank", str(folder.path)]
                launch.spawn(program, nproc=settings.launch.nproc, logs=folder.logs)
            return
        except launch.LaunchError as error:
            # Rank 0 may have been stopped before it could record why.
            reason = str(error).splitlines()[-1]
            folder.end("failed", reason)
            if restarts == most:
                raise
            said = f"{reason}: restart {restarts + 1} of {most}"
            chosen, skipped = checkpoint.verified(folder)
            for line in (said, *skipped, _going_on(folder, chosen, settings.launch.nproc)):
                print(line, file=sys.stderr)
            folder.update(state="running", error=None, finished_at=None, restarts=restarts + 1)
        except KeyboardInterrupt as stopped:
            folder.end("interrupted", f"{stopped}; go on with resume={folder.path}")
            raise


@dataclass(frozen=True)
class _NewRun:
    """A run that may start: its folder, its config, and the first entries of its record."""

    path: Path
    settings: RunConfig
    record: dict[str, Any]

    def create(self) -> RunFolder:
        config = strict.to_containers(self.settings)
        return RunFolder.create(self.path, config=config, record=self.record)


def _prepare(settings: RunConfig, world_size: int, command: str | None) -> _NewRun:
    """Check everything that can be checked without loading a model."""
    path = Path(settings.run_dir or Path("outputs") / settings.experiment / run_folder.new_run_id())
    run_folder.check_unused(path)
    laps = Laps()
    made = plan.make(settings, world_size=world_size)
    show(made, settings, Console(stderr=True))
    check_fits(made, settings)
    laps.end("plan")
    # A run that resumes, maybe elsewhere, keeps the engines that its checkpoints are of.
    accepted = replace(settings, run_dir=str(path), resume=None, engine=made.engine)
    data = _preflight(accepted, laps)
    show_texts(data.use, Console(stderr=True))
    recorded = any(stage.graphs for stage in made.stages) and settings.engine.cuda_graphs == "auto"
    if recorded and any(b.packed for streams in data.blocks.values() for b in streams.values()):
        print(
            "packed blocks run without CUDA graphs; engine.cuda_graphs=true records them too",
            file=sys.stderr,
        )
    record: dict[str, Any] = {
        "run_id": _run_id(settings, path),
        "experiment": settings.experiment,
        "method": settings.recipe.name,
        "model": identity(settings.model),
        "seed": settings.seed,
        "sweep": asdict(settings.sweep) if settings.sweep else None,
        "command": command or run_folder.command_line(sys.argv),
        "device": run_folder.device_name(),
        "world_size": world_size,
        "versions": run_folder.versions(),
        "corpus": data.corpus.key,
        "data_fingerprint": data.fingerprints(),
        "texts": data.use.record(),
        "start_seconds": laps.seconds,
        **run_folder.git_state(ROOT),
    }
    return _NewRun(path, accepted, record)


def _run_id(settings: RunConfig, path: Path) -> str:
    """The run's id, also for the tracker.

    A job of a sweep keeps its id when it starts over. An agent of W&B chooses the id itself.
    """
    if settings.sweep is not None:
        return f"{settings.sweep.id}-{settings.sweep.hash[:8]}"
    chosen = tracking.agent_run_id(os.environ)
    if chosen is not None:
        return chosen
    return run_folder.new_run_id() if settings.run_dir else path.name


def _preflight(settings: RunConfig, laps: Laps) -> texts.Data:
    """Refuse what this machine lacks, then gather what the run reads."""
    check_machine(settings)
    if settings.engine.student.offload_optimizer:
        _check_compiler(
            "engine.student.offload_optimizer: DeepSpeed compiles its AdamW for CPUs",
            "offload_optimizer=false",
            tools=("ninja",),
        )
    if settings.engine.compile and not uses_cuda(settings.engine.device):
        _check_compiler("engine.compile: torch compiles the layers", "compile=false")
    # Before anything imports DeepSpeed: it would look for a device and print what it has found.
    device = "cuda" if uses_cuda(settings.engine.device) else "cpu"
    os.environ.setdefault("DS_ACCELERATOR", device)
    tracking.check(settings.tracking)
    check_push(settings.export)
    return preparing.gather(settings, laps)


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
