"""The commands from Python: what is typed behind a command is a list of strings here.

    from src.api import evaluate, plan, run

    print(plan("+experiment=linearard_32k", "plan_for=h100").seconds)
    folder = run("+experiment=quickstart", "model=tiny")
    results = evaluate(f"run={folder}", "eval=perplexity")

Import it in the repository's root, or with the root on PYTHONPATH. All functions raise
`src.settings.strict.ConfigError`, a ValueError, for what a command would refuse.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from src.planning import plan as planning
from src.planning.checks import check_launch
from src.planning.plan import Plan
from src.settings import loading
from src.settings.config import EvaluateConfig, RunConfig
from src.settings.strict import ConfigError

if TYPE_CHECKING:
    from src.evals.running import Evaluated


def compose(*overrides: str) -> RunConfig:
    """The accepted settings of a training run.

    Raises:
        ConfigError: anything refused; one line for each fault.
    """
    return loading.compose(RunConfig, "train", overrides)


def plan(*overrides: str) -> Plan:
    """Tokens, steps, memory (bytes a rank) and time (seconds) of a run; starts nothing.

    It loads neither torch nor weights. `src.planning.printing.show` prints it.

    Raises:
        ConfigError: anything refused. A run that does not fit is planned all the same: `fits`.
    """
    settings = compose("dry_run=true", *overrides)
    return planning.make(settings, world_size=settings.launch.ranks)


def prepare(*overrides: str) -> None:
    """Fetch the weights, tokenize the texts and make the questions of a run; starts nothing.

    Raises:
        ConfigError, DataError, ModelError, AssetError: a user's mistake, or no network.
    """
    from src.training import preparing

    preparing.prepare([compose(*overrides)])


def run(*overrides: str) -> Path:
    """Train, export and evaluate; returns the run folder. With several ranks it starts them.

    Raises:
        ConfigError, DataError, ModelError, RunFolderError, AssetError: a user's mistake, before a
            run folder is made.
        LaunchError: a rank has failed.
    """
    settings = compose(*overrides)
    if settings.dry_run or settings.prepare or settings.resume:
        raise ConfigError(
            "dry_run, prepare and resume are not for run(): use plan(), prepare() or "
            "src.training.start.resume(Path(RUN_DIR), None)"
        )
    check_launch(settings.launch, None, dry_run=False)
    # Imported here because torch takes seconds to load, and a plan does without it.
    from src.training import start

    return start.train(
        settings, None, command=shlex.join(["python", "-m", "src.train", *overrides])
    )


def evaluate(*overrides: str) -> Evaluated:
    """Evaluate a run's models or a model by name; results by suite, which are written too.

    `results.records["perplexity"]` is the record that `evals/perplexity.json` holds;
    `results.print(Console())` prints the tables.

    Raises:
        ConfigError: no suite is chosen, or settings that contradict each other.
        RunFolderError: the run has no exported model.
        EvaluationError: a task or a model could not be evaluated; what could be is written first.
    """
    settings = loading.compose(EvaluateConfig, "evaluate", overrides)
    from src.evals import running

    results = running.evaluate(settings)
    results.check()
    return results
