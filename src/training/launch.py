"""Ranks: one process, local ranks that this module starts, or those of a launcher.

torchrun, the deepspeed launcher and Slurm start every rank themselves and say so in the
environment. `launch.nproc` starts local ranks from a single command.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import environment
from src.planning.devices import gpu_share
from src.training.signals import PARENT_VARIABLE, Stopped, deferred, received, stoppable

if TYPE_CHECKING:
    import torch

# Polls, of a tenth of a second, after which a rank that stands still is given up.
STOPPED_POLLS = 300


class LaunchError(RuntimeError):
    """A rank failed; the message holds that rank's traceback."""


@dataclass(frozen=True)
class World:
    """The rank of this process, and the number of ranks."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which reports, writes files and evaluates."""
        return self.rank == 0


def world_from_environment(environment: Mapping[str, str]) -> World | None:
    """The rank that a launcher gave this process, or None without a launcher.

    torchrun and deepspeed set RANK, LOCAL_RANK and WORLD_SIZE; Slurm sets SLURM_PROCID,
    SLURM_LOCALID and SLURM_NTASKS for tasks started by srun.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    else:
        return None
    return World(*(int(environment.get(name, 0)) for name in names))


@contextmanager
def uncollected(*, freezes: bool = False) -> Iterator[None]:
    """Inside the block no garbage is collected.

    Libraries make a million objects when they are loaded, which live as long as the process. To
    look through them again and again takes a sixth of the loading, and a second of later
    collections.

    Args:
        freezes: whether later collections leave out what there is at the end of the block. They do
            so once a process, since garbage would stay too.
    """
    gc.disable()
    try:
        yield
    finally:
        if freezes:
            _freeze()
        gc.enable()


# Once a process: `gc.get_freeze_count` would look through all that is frozen.
_freeze = functools.cache(gc.freeze)


@contextmanager
def joined(world: World, *, cuda: bool) -> Iterator[None]:
    """Set up torch.distributed for this process and choose its GPU. It may be entered again.

    Raises:
        RuntimeError: a Slurm job does not say where rank 0 is.
    """
    import torch
    from torch import distributed

    if cuda:
        torch.cuda.set_device(world.local_rank)
        if (share := gpu_share()) < 1:
            torch.cuda.set_per_process_memory_fraction(share)
    # DeepSpeed reads these, and looks for MPI where they are missing.
    ranks = {
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.local_rank),
        "WORLD_SIZE": str(world.size),
    }
    before = {name: os.environ.get(name) for name in ranks}
    os.environ.update(ranks)
    try:
        if not distributed.is_initialized():
            # NCCL derives the GPU from the global rank unless it is given.
            device = torch.device("cuda", world.local_rank) if cuda else None
            _initialize(world, "nccl" if cuda else "gloo", device)
        yield
    finally:
        # Otherwise a later job of this process would look as if a launcher had started it.
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _initialize(world: World, backend: str, device: torch.device | None) -> None:
    from torch import distributed
    from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

    if world.size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")
        distributed.init_process_group(
            backend, store=HashStore(), rank=0, world_size=1, device_id=device
        )
        atexit.register(distributed.destroy_process_group)
        return
    if "SLURM_PROCID" in os.environ:
        _slurm_address()
    distributed.init_process_group(backend, device_id=device)


def _slurm_address() -> None:
    """MASTER_ADDR and MASTER_PORT from the job, unless the job script has set them."""
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
        if not nodes:
            raise RuntimeError("Slurm gave no node list: set MASTER_ADDR to the first node's name")
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
        os.environ["MASTER_ADDR"] = listed.stdout.split()[0]
    # Jobs that share a node get different ports.
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000))


def agreed(value: Any) -> Any:
    """Rank 0's value, sent to all ranks, whatever theirs is. A collective call."""
    from torch import distributed

    told = [value]
    distributed.broadcast_object_list(told, src=0)
    return told[0]


def leave(world: World) -> None:
    """Leave the other ranks.

    A single process keeps its group until it exits: DeepSpeed never forgets a group, and the next
    run in the same process (of a sweep or a test) uses it again.
    """
    from torch import distributed

    if world.size > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


def spawn(arguments: Sequence[str], *, nproc: int, logs: Path) -> None:
    """Run `python ARGUMENTS` for each rank on this machine, and wait for all.

    Rank 0 writes to this process's terminal, the others to `logs/rank-N.log`. When a rank fails,
    or has been stopped (SIGSTOP) for 30 s, the others are stopped. A signal to this process is
    passed on to the ranks, which save and end. All ranks end when this process ends, in whatever
    way.

    Raises:
        LaunchError: a rank failed; with its traceback.
        Stopped: a signal has ended them.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    logs.mkdir(parents=True, exist_ok=True)
    for stale in logs.glob("rank-*.traceback"):
        stale.unlink()
    # This process holds the rendezvous, so that no other can take its port.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(nproc):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(nproc),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
                PARENT_VARIABLE: str(os.getpid()),
            }
            with (logs / f"rank-{rank}.log").open("wb") as log:
                output = None if rank == 0 else log
                ranks.append(
                    # In a session of its own: a terminal's Ctrl-C reaches it through this process.
                    subprocess.Popen(
                        [sys.executable, *arguments],
                        env=environment,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
        with deferred() as asked:
            _wait(ranks, logs, asked)
    finally:
        stop(ranks)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], logs: Path, asked: Callable[[], int]) -> None:
    still = [0] * len(ranks)
    passed_on = 0
    while True:
        if (number := asked()) and not passed_on:
            passed_on = number
            for process in ranks:
                process.send_signal(number)
        codes = [process.poll() for process in ranks]
        if passed_on and codes[0] == 128 + passed_on:
            return  # what the others do without rank 0 is of no use
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed and not passed_on:
            raise LaunchError(_failure(failed, codes, logs))
        if None not in codes:
            if passed_on and codes[0] != 0:
                raise LaunchError(_failure(failed, codes, logs))
            return
        for rank, process in enumerate(ranks):
            # Counted in polls, not in time: if all are stopped and go on together, none has failed.
            still[rank] = still[rank] + 1 if _is_stopped(process.pid) else 0
            if still[rank] >= STOPPED_POLLS:
                process.kill()  # it would not hear that it is to end
                raise LaunchError(
                    f"rank-{rank} has been stopped (SIGSTOP) for {STOPPED_POLLS / 10:.0f} s; the "
                    "other ranks cannot go on without it"
                )
        time.sleep(0.1)


def _is_stopped(pid: int) -> bool:
    """Whether a child process is stopped, where the system says so."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def _failure(failed: Sequence[int], codes: Sequence[int | None], logs: Path) -> str:
    """Why the first ranks failed.

    A killed rank comes first: it leaves no traceback, and those of the other ranks only say that it
    is missing.
    """
    killed = [rank for rank in failed if (codes[rank] or 0) < 0]
    traces = [path for rank in failed if (path := logs / f"rank-{rank}.traceback").is_file()]
    if traces and not killed:
        first = min(traces, key=lambda path: path.stat().st_mtime_ns)
        return f"{first.stem} failed:\n{first.read_text(encoding='utf-8').rstrip()}"
    rank = (killed or list(failed))[0]
    code = codes[rank] or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"rank-{rank} {how}; see {logs / f'rank-{rank}.log'}"


def stop(processes: Sequence[subprocess.Popen[bytes]], *, grace: float = 10.0) -> None:
    """End processes: ask all of them, and kill those that still run after `grace` seconds."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_rank(work: Callable[[World], None], logs: Path) -> None:
    """Run one spawned rank. It ends with its parent, and writes a traceback if it fails."""
    _die_with_parent(int(os.environ[PARENT_VARIABLE]))
    world = world_from_environment(os.environ)
    assert world is not None
    try:
        with stoppable():
            work(world)
    except Stopped as stopped:
        sys.exit(stopped.code)
    except Exception:
        if number := received():
            sys.exit(128 + number)
        trace = logs / f"rank-{world.rank}.traceback"
        trace.write_text(environment.redacted(traceback.format_exc()), encoding="utf-8")
        raise


def _die_with_parent(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
