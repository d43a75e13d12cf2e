"""The question a run answers: native, scaled and trained models on the same held-out text."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from src import models
from src.data import prepare_corpus
from src.devices import DTYPES, device_of
from src.evals import perplexity
from src.evals.perplexity import PerplexityConfig
from src.run_folder import SCHEMA, RunFolder, write_json

if TYPE_CHECKING:
    from src.config import RunConfig
    from src.data import Corpus, DataConfig
    from src.models import ModelConfig
    from src.tracking import Tracker


@dataclass(frozen=True)
class PerplexityResults:
    """A run's perplexities: what evals/perplexity.json holds."""

    content: dict[str, Any]
    headline: str

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A model a row, a window a column, and last the gap closed at the headline."""
        windows = [str(w) for w in self.content["windows"]]
        columns = ["model", *(f"ppl {w}" for w in windows), f"gap closed @{self.headline}"]
        rows = []
        for model in self.content["models"]:
            scored = self.content["scores_by_model"].get(model["name"])
            closed = scored[self.headline]["gap_closed"] if scored else None
            rows.append([model["name"], *(model["perplexity"][w] for w in windows), closed])
        return columns, rows

    def print(self, console: Console) -> None:
        """Print the table; output that is no terminal is wide enough for every figure."""
        if not console.is_terminal:
            console.width = max(console.width, 120)
        columns, rows = self.table()
        data = self.content["dataset"]
        table = Table(
            title=f"Perplexity of held-out {data['name']} text "
            f"({len(data['documents'])} documents, lower is better)",
            title_justify="left",
        )
        for column in columns:
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, *values, closed in rows:
            gap = "-" if closed is None else f"{closed:.1%}"
            table.add_row(name, *(f"{v:.2f}" for v in values), gap)
        console.print(table)
        if scored := self.content["scores"]:
            recovery = scored[self.headline]["recovery"]
            console.print(
                f"recovery at window {self.headline}: {recovery:.1f}% of the native model"
            )

    def report(self, tracker: Tracker) -> None:
        """Print the table and give it to the tracker, with the last model's scores as summary."""
        self.print(Console())
        columns, rows = self.table()
        tracker.log_table("perplexity", columns, rows)
        summary = {
            f"eval/{model['name']}/perplexity/{window}": value
            for model in self.content["models"]
            for window, value in model["perplexity"].items()
        }
        for window, scored in (self.content["scores"] or {}).items():
            summary |= {f"eval/{key}/{window}": value for key, value in scored.items()}
        tracker.summarize(summary)


def held_out_segments(
    corpus: Corpus, config: PerplexityConfig
) -> tuple[np.ndarray, dict[str, Any]]:
    """Segments of a corpus's held-out text, and what the results say of them.

    Raises:
        ValueError: no held-out document is long enough.
    """
    documents = corpus.held_out_documents()
    found = perplexity.segments(documents, config)
    about = {
        "name": corpus.name,
        "documents": [name for name, _ in documents],
        "fingerprint": corpus.fingerprint(max(config.windows)),
        "tokens": int(found.size),
    }
    return found, about


def evaluate_run(
    config: RunConfig, folder: RunFolder, suite: PerplexityConfig
) -> PerplexityResults:
    """Score the native model, the scaled one and what each stage made of it; write the results.

    The models are loaded one after the other, trained ones from their exported folders.
    """
    corpus = prepare_corpus(config.data, models.load_tokenizer(config.model))
    found, about = held_out_segments(corpus, suite)
    stages = list(config.recipe.stages)
    exports = [(f"after {s}", folder.export(s)) for s in stages[:-1]]
    exports.append((f"after {stages[-1]}", folder.export()))
    native = models.native_config(config.model)
    scaled = models.scaled_config(config.model, config.rope)
    candidates = [("native", native, None), ("scaled", scaled, None)]
    candidates += [(name, scaled, path) for name, path in exports]
    results = [
        _score(
            config.model, kind, path, name, found, suite, config.engine.device, config.engine.dtype
        )
        for name, kind, path in candidates
    ]
    content = _content(suite, about, results)
    folder.evals.mkdir(exist_ok=True)
    write_json(folder.evals / "perplexity.json", content)
    return PerplexityResults(content, str(suite.headline))


def evaluate_model(
    model: ModelConfig, data: DataConfig, suite: PerplexityConfig, *, device: str, dtype: str
) -> PerplexityResults:
    """Score one model as it is."""
    corpus = prepare_corpus(data, models.load_tokenizer(model))
    found, about = held_out_segments(corpus, suite)
    native = models.native_config(model)
    result = _score(model, native, None, model.name, found, suite, device, dtype)
    return PerplexityResults(_content(suite, about, [result]), str(suite.headline))


def _score(
    model: ModelConfig,
    config: Any,
    weights: Path | None,
    name: str,
    found: np.ndarray,
    suite: PerplexityConfig,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    network = models.load_model(model, config, dtype=DTYPES[dtype], weights=weights)
    network.to(device_of(device))  # type: ignore[arg-type]  # transformers narrows nn.Module.to
    result = perplexity.evaluate_model(network, found, suite, name=name)
    del network
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def _content(
    suite: PerplexityConfig, about: dict[str, Any], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    by_name = {result["name"]: result["perplexity"] for result in results}
    scored: dict[str, Any] = {}
    if "native" in by_name and "scaled" in by_name:
        students = [name for name in by_name if name not in ("native", "scaled")]
        scored = {
            name: perplexity.scores(by_name["native"], by_name["scaled"], by_name[name])
            for name in students
        }
    last = results[-1]["name"]
    return {
        "schema": SCHEMA,
        "suite": "perplexity",
        "dataset": about,
        "windows": list(suite.windows),
        "headline": suite.headline,
        "models": list(results),
        "scores": scored.get(last),
        "scores_by_model": scored,
    }
