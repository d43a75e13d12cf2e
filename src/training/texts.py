"""The texts of a run: its corpus, each stream's blocks, and how much of the text they use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from src.data.corpus import Corpus, TrainingBlocks
from src.data.documents import DataError
from src.data.preparation import prepare_corpus
from src.data.usage import StreamUse, TextUse
from src.models.loading import load_tokenizer
from src.settings.config import RunConfig
from src.training.schedule import StageSchedule, StreamConfig


@dataclass(frozen=True)
class Data:
    """The corpus and each stage's blocks by stream."""

    corpus: Corpus
    blocks: Mapping[str, Mapping[str, TrainingBlocks]]
    use: TextUse

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each stream: sources, tokenizer, length, and how its blocks are made."""
        return {
            f"{stage}/{stream}": self.corpus.fingerprint(blocks.length, blocks.recipe)
            for stage, streams in self.blocks.items()
            for stream, blocks in streams.items()
        }


def prepare_data(config: RunConfig, *, key: str | None = None) -> Data:
    """Read and tokenize the text, and cut it into every stream's blocks.

    Args:
        key: of its corpus, if it has just been prepared.

    Raises:
        DataError: text that is missing, unreadable, too short, or held out and trained on at once.
    """
    corpus = prepare_corpus(config.data, load_tokenizer(config.model), key=key)
    blocks: dict[str, dict[str, TrainingBlocks]] = {}
    uses: list[StreamUse] = []
    for name, stage in config.recipe.training.items():
        read = StageSchedule(stage).blocks_read()
        blocks[name] = {}
        for stream, settings in stage.streams.items():
            unpacked = _why_unpacked(config, settings)
            try:
                made = corpus.blocks(
                    settings.length,
                    seed=config.seed,
                    stream=f"{name}/{stream}",
                    packing=False if unpacked else config.data.packing is True or None,
                    weights=config.data.weights,
                    # Long blocks are there for text that is long itself.
                    wanted=read[stream] if settings.length > config.model.native_window else None,
                )
            except DataError as error:
                reason = f" ({unpacked})" if unpacked else ""
                raise DataError(
                    f"recipe.stages.{name}.streams.{stream}{reason}: {error}"
                ) from error
            blocks[name][stream] = made
            uses.append(StreamUse.of(f"{name}/{stream}", made, read[stream]))
    return Data(corpus, blocks, TextUse.of(corpus, uses))


def _why_unpacked(config: RunConfig, stream: StreamConfig) -> str | None:
    """The setting that keeps a stream's blocks within documents; None if they may be packed."""
    for name in stream.terms:
        if (setting := config.objective.terms[name].needs_whole_documents()) is not None:
            return f"objective.terms.{name}.{setting} needs whole documents"
    return "data.packing=false" if config.data.packing is False else None
