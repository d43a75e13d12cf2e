"""Stand-ins: engines without DeepSpeed, and a sweep's jobs without processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.models.adapters import make_trainable
from src.models.facts import ModelFacts
from src.models.hf_config import native_config, scaled_config
from src.models.loading import load_model
from src.models.shapes import facts_of
from src.multirun import process
from src.multirun.folder import Task
from src.multirun.process import Share
from src.objectives.base import Batch, Needs, Objective, Outputs
from src.passes.student import Teach
from src.planning.plan import StagePlan
from src.settings.config import RunConfig
from src.training import start
from src.training.engines import Engines
from src.training.tensor_files import Part, SavedState


class FakeTeacher:
    """A teacher that counts its passes and has no weights."""

    def __init__(self, sha256: str = "0" * 64) -> None:
        self.passes = 0
        self._sha256 = sha256

    def outputs(self, batch: Batch, needs: Needs) -> Outputs:
        """Nothing of a batch."""
        del batch, needs
        self.passes += 1
        return Outputs()

    def sha256(self) -> str:
        """What it was made with."""
        return self._sha256

    def close(self) -> None:
        """Nothing is held."""


class FakeStudent:
    """A student that learns the mean token by gradient descent, with some noise in its loss.

    It runs no layer. What it trains are the parameters of a real network, so a run can export them.
    """

    def __init__(
        self, network: nn.Module, objectives: Mapping[str, Objective], facts: ModelFacts
    ) -> None:
        self._objectives, self._facts = objectives, facts
        self.trained = {n: p for n, p in network.named_parameters() if p.requires_grad}

    def loss(
        self, batch: Batch, stream: str, teach: Teach | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared distance of the parameters' sum from the mean token, times 1 to 1.1."""
        needs = self._objectives[stream].needs(self._facts)
        if needs.teacher and teach is not None:
            teach(batch, needs)
        total = torch.stack([parameter.sum() for parameter in self.trained.values()]).sum()
        distance = (total - batch.input_ids_bt.float().mean() / 256) ** 2 * (
            1 + 0.1 * torch.rand(())
        )
        return distance, {"distance": distance.detach()}

    def predictions(self, ids_bt: Tensor) -> tuple[Tensor, Tensor]:
        """A loss of 1 for each next token, none of which is the most likely one."""
        next_bt = ids_bt[:, 1:]
        return torch.ones(next_bt.shape), torch.zeros(next_bt.shape, dtype=torch.bool)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add up gradients."""
        del last
        loss.backward()

    def step(self, lr: float) -> float:
        """Gradient descent, where the gradient is finite."""
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        with torch.no_grad():
            for parameter in self.trained.values():
                if math.isfinite(norm) and parameter.grad is not None:
                    parameter -= lr * 1e-3 * parameter.grad
                parameter.grad = None
        return norm

    def trained_parameters(self) -> dict[str, Tensor]:
        """Copies of the trained parameters."""
        return {name: p.detach().clone() for name, p in self.trained.items()}

    def frozen_sha256(self) -> str:
        """Nothing is frozen here."""
        return "0" * 64

    def state(self) -> list[Part]:
        """Gradient descent has no state of its own."""
        whole = self.trained.items()
        return [Part(name, "weight", 0, tensor.flatten()) for name, tensor in whole]

    def load(self, saved: SavedState) -> None:
        """Read what `state` gave."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                flat = saved.read("weight", name, 0, parameter.numel())
                parameter.copy_(flat.view_as(parameter))

    def close(self) -> None:
        """Nothing is held."""


def build_engines(
    config: RunConfig,
    name: str,
    planned: StagePlan,
    objectives: Mapping[str, Objective],
    *,
    weights: Path | None = None,
    **more: Any,
) -> Engines:
    """In the place of `src.training.stage.build_engines`: a fake teacher and a fake student."""
    del planned, more
    scaled = scaled_config(config.model, config.rope)
    base = load_model(config.model, scaled, dtype=torch.float32, weights=weights)
    network = make_trainable(base, config.recipe.stages[name].parameters, seed=config.seed)
    facts = facts_of(native_config(config.model))
    return Engines(objectives, facts, FakeStudent(network, objectives, facts), FakeTeacher())


class JobsHere:
    """In the place of `process.start`: a sweep's job runs here, and has ended when it returns."""

    def __init__(self, compose_run: Callable[..., RunConfig]) -> None:
        self._compose_run = compose_run

    def __call__(self, task: Task, share: Share) -> EndedJob:
        """What `python -m src.train` would do with the job's arguments, and how it would end."""
        del share
        given = process.arguments(task)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            if given[0].startswith("resume="):
                start.resume(task.run_dir, None)
            else:
                start.train(self._compose_run(*given), None)
        except ValueError as error:
            task.log.write_text(f"error: {error}\n")
            return EndedJob(2)
        return EndedJob(0)


class EndedJob:
    """As much of `subprocess.Popen` as a sweep asks of a job that has ended."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        """Its exit code."""
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code."""
        del timeout
        return self.returncode
