"""Commands as forks of one process that has loaded what they need.

Loading torch, transformers and DeepSpeed takes a command five times as long as a tiny run. A
`Command` has a process, an environment and an output of its own nevertheless, and so have the ranks
and jobs that it starts itself. What only a fresh interpreter shows needs a fresh one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What commands, and ranks of test_sequence.py, load sooner or later.
LOADED = (
    "tests.forking",
    "tests.src.training.sequence_ranks",
    "src.multirun.driver",
    "src.evals.harness",
    "src.report.tracked",
    "deepspeed",
    "deepspeed.runtime.zero.muon.original_muon",
    "transformers.models.llama.modeling_llama",
    "transformers.loss.loss_utils",
    "torch.distributed.run",
)


def server() -> multiprocessing.context.ForkServerContext:
    """The context whose processes are forked; the first one waits until all has been loaded."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(list(LOADED))
    with pytest.MonkeyPatch.context() as patch:
        # Chosen once, when DeepSpeed is loaded.
        patch.setenv("DS_ACCELERATOR", "cpu")
        forkserver.ensure_running()
    return forking


def forget_hydra() -> None:
    """What a command in this process has composed, so that another can compose its own."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


class Command:
    """A running `python PROGRAM`, where PROGRAM is `-m MODULE ...` or `-c CODE ...`.

    Of `subprocess.Popen` it has what tests use; its output is in files.
    """

    def __init__(self, program: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        self._outputs = (folder / "stdout", folder / "stderr")
        self._process = server().Process(
            target=_serve, args=(list(program), self._outputs, os.environ | env)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self._process.exitcode

    def finished(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what it has said."""
        code = self.wait(timeout)
        out, err = (path.read_text(encoding="utf-8") for path in self._outputs)
        return subprocess.CompletedProcess([], code, out, err)

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(program: Sequence[str], outputs: Sequence[Path], environment: dict[str, str]) -> None:
    from tests import forking

    inputs = os.open(os.devnull, os.O_RDONLY)
    pipes = [inputs, *(os.open(path, os.O_CREAT | os.O_WRONLY) for path in outputs)]
    forking.become(program, pipes, ROOT, environment, None)
