"""Evaluate a run's models, or a model by name.

python -m src.evaluate run=RUN_DIR eval=short               (or long, perplexity, all, ...)
python -m src.evaluate run=RUN_DIR eval=short compare=[OTHER_RUN_DIR]
python -m src.evaluate model=smollm2_135m eval=short limit=100
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig
from rich.console import Console

from src import command
from src.evals import running
from src.settings import loading
from src.settings.config import EvaluateConfig


def evaluate(settings: EvaluateConfig) -> None:
    """Run the chosen suites and print their tables.

    Raises:
        RunFolderError: the run has no exported model.
        EvaluationError: a task or a model could not be evaluated. The results of the others are
            written and printed first.
    """
    results = running.evaluate(settings)
    results.print(Console())
    results.check()


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@command.job
def _app(composed: DictConfig) -> None:
    evaluate(loading.load(EvaluateConfig, composed))


@command.job
def _typed(arguments: list[str]) -> None:
    # Hydra reads the command line itself.
    sys.argv[1:] = loading.completed(arguments)
    _app()


def main() -> None:
    """Entry point."""
    command.run(lambda: _typed(sys.argv[1:]), EvaluateConfig)


if __name__ == "__main__":
    main()
