"""Everything that a run reads: weights, tokens and questions, fetched and made before it starts.

With `prepare=true` a command does no more than that, so that the same command can run where there
is no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from src.assets.cache import CACHE_VARIABLE, cache_dir
from src.evals import running
from src.models.config import HubWeights
from src.models.hf_config import resolved_shape
from src.models.loading import check_ids, check_student
from src.models.sources import check_available
from src.planning import plan
from src.planning.printing import show_texts
from src.progress import Laps
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training import interim, texts
from src.training.export import check_tokenizer


def gather(settings: RunConfig, laps: Laps) -> texts.Data:
    """Fetch or find the models, the text and the questions; refuse what does not fit together.

    Args:
        settings: of the run.
        laps: takes the seconds of `model`, `texts` and `evaluation`.

    Raises:
        ConfigError, DataError, ModelError, AssetError: something cannot be fetched, made or used.
    """
    check_available(settings.model)
    if settings.export.gguf:
        check_tokenizer(settings.model, resolved_shape(settings.model))
    check_student(settings.model, settings.student)
    laps.end("model")
    data = texts.prepare_data(settings)
    check_ids(settings.model, data.corpus.largest_id)
    laps.end("texts")
    interim.check(settings, data.corpus)
    if refused := running.problems(settings):
        raise ConfigError("\n".join(refused))
    laps.end("evaluation")
    return data


def prepare(runs: Iterable[RunConfig]) -> None:
    """Gather what runs read, start nothing, and say what to copy to a machine without a network.

    Runs that read the same are prepared once.

    Raises:
        ConfigError, DataError, ModelError, AssetError: the first run that is refused.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    distinct = list({_reads(run): run for run in runs}.values())
    for number, run in enumerate(distinct, 1):
        if len(distinct) > 1:
            console.print(f"{number} of {len(distinct)}: {run.experiment}, {run.model.name}")
        plan.make(run, world_size=run.launch.ranks)
        show_texts(gather(run, Laps()).use, console)
    for line in _advice(distinct):
        console.print(line)


def _reads(run: RunConfig) -> str:
    """What decides which files a run reads, as a key."""
    streams = {
        f"{name}/{stream}": [about.length, about.terms]
        for name, stage in run.recipe.training.items()
        for stream, about in stage.streams.items()
    }
    plain = asdict(run)
    parts = [plain[name] for name in ("model", "rope", "student", "data", "eval", "export")]
    return json.dumps([streams, *parts], sort_keys=True)


def _advice(runs: Sequence[RunConfig]) -> Iterator[str]:
    folder = cache_dir()
    gigabytes = sum(file.stat().st_size for file in _files(folder)) / 1e9
    yield f"all that is read is in {folder} ({gigabytes:.2f} GB)"
    yield (
        f"on a machine without a network: copy that folder, set {CACHE_VARIABLE} to the copy, and "
        "type the same command without prepare=true"
    )
    if any(_uses_hub(run) for run in runs):
        from huggingface_hub import constants

        yield (
            f"files of the hub are in {constants.HF_HOME}: copy it too, set HF_HOME to the copy, "
            "and HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1"
        )


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _uses_hub(run: RunConfig) -> bool:
    """Whether files of it lie in the hub's own cache. Tokens of the hub's texts lie in ours."""
    weights = (run.model.source, run.student.source)
    questions = [getattr(suite, "source", None) for suite in run.eval.suites()]
    return "hub" in questions or any(isinstance(source, HubWeights) for source in weights)
