"""Ranks as forks of a process that has loaded torch and DeepSpeed: they start at once.

They are for tests of what ranks compute. tests/src/training/test_launch.py shows how commands and
launchers start ranks, which need interpreters of their own.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait

from torch.distributed import TCPStore

from src.training.launch import World, leave

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.loaded"])


def on_ranks(nproc: int, work: Callable[..., object], *arguments: object) -> None:
    """Let ranks of this machine call `work(world, *arguments)`, a module's own function.

    What a rank raises is raised here.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # A rank ends with its work, so that the others notice if it has failed.
    with ProcessPoolExecutor(nproc, mp_context=FORKS, max_tasks_per_child=1) as ranks:
        ended = [
            ranks.submit(_rank, World(n, n, nproc), store.port, work, arguments)
            for n in range(nproc)
        ]
        for rank in wait(ended, return_when=FIRST_EXCEPTION).done:
            rank.result()


def _rank(world: World, port: int, work: Callable[..., object], arguments: tuple) -> None:
    os.environ.update(
        RANK=str(world.rank),
        LOCAL_RANK=str(world.local_rank),
        WORLD_SIZE=str(world.size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    work(world, *arguments)
    leave(world)
