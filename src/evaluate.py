"""Evaluate a run's models, or a model by name.

python -m src.evaluate run=RUN_DIR eval=perplexity
python -m src.evaluate model=smollm2_135m eval=perplexity data=sotu
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console

from src import command, config
from src.config import ConfigError, EvaluateConfig, RunConfig
from src.evals.restoration import evaluate_model, evaluate_run
from src.run_folder import RunFolder, RunFolderError


def evaluate(settings: EvaluateConfig) -> None:
    """Run the chosen suites and print their tables.

    Raises:
        RunFolderError: the run has no exported model.
    """
    suite = settings.eval.perplexity
    if suite is None:
        raise ConfigError("eval: no suite is chosen; allowed: eval=perplexity")
    if settings.run is None:
        assert settings.model is not None
        results = evaluate_model(
            settings.model, settings.data, suite, device=settings.device, dtype=settings.dtype
        )
        results.print(Console())
        return
    folder = RunFolder.open(Path(settings.run))
    if not folder.export().is_dir():
        raise RunFolderError(f"run={settings.run} has no exported model: finish it with resume=")
    own = config.load_plain(RunConfig, folder.config())
    device = replace(own.engine, device=settings.device, dtype=settings.dtype)
    results = evaluate_run(replace(own, engine=device), folder, suite)
    results.print(Console())


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@command.job
def _app(composed: DictConfig) -> None:
    evaluate(config.load(EvaluateConfig, composed))


def main() -> None:
    """Entry point."""
    command.run(_app, EvaluateConfig)


if __name__ == "__main__":
    main()
