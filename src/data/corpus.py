"""A corpus: documents as token ids on disk, split into training and held-out texts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from src.data.blocks import Blocks
from src.data.documents import DataError
from src.data.mixing import MixedBlocks
from src.data.overlap import Overlap, find_overlaps
from src.manifest import DamageError, seal_folder, verify

Split = Literal["train", "held_out"]
TrainingBlocks = Blocks | MixedBlocks
INDEX_FILE = "index.json"
TOKENS_FILE = "tokens.npy"
LEARNT_FILE = "learnt.npy"
# With whole blocks only, the end of each document is left out. Up to this share of the text it is.
_LEFT_OUT = 0.05


@dataclass(frozen=True)
class DocumentInfo:
    """One document of a corpus: its number of tokens, its text's SHA-256 and its use."""

    name: str
    tokens: int
    sha256: str
    split: Split


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenized documents, memory-mapped. `tokens` holds them one after the other, in order.

    `overlaps` says how much text held-out documents share with training documents. `sources` says
    how many documents came from each source, in order. `learnt` says which tokens are to be learnt,
    bool, where that is not all of them.
    """

    name: str
    key: str
    documents: tuple[DocumentInfo, ...]
    overlaps: dict[str, Overlap]
    tokens: np.ndarray
    sources: dict[str, int] = field(default_factory=dict)
    learnt: np.ndarray | None = None

    @property
    def train_tokens(self) -> int:
        return sum(info.tokens for info in self.documents if info.split == "train")

    @property
    def largest_id(self) -> int:
        """The largest token id that occurs; -1 without any token."""
        return int(self.tokens.max()) if len(self.tokens) else -1

    def fingerprint(self, length: int, recipe: str = "") -> str:
        """SHA-256 of texts, splits, tokenizer, block length, and how blocks are made of texts."""
        made = f"/{recipe}" if recipe else ""
        return hashlib.sha256(f"{self.key}/{length}{made}".encode()).hexdigest()

    def blocks(
        self,
        length: int,
        *,
        seed: int,
        stream: str = "main",
        packing: bool | None = False,
        wanted: int | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> TrainingBlocks:
        """Training blocks of `length` tokens; see `Blocks`.

        Args:
            length, seed, stream: of the blocks and their order.
            packing: whether documents shorter than a block are packed. None packs if there are any,
                or if whole blocks would leave out more than a twentieth of the text.
            wanted: as in `Blocks`.
            weights: of the sources, whose blocks are then mixed; see `MixedBlocks`.

        Raises:
            DataError: the training documents, or those of a source, do not fill a block.
        """

        def made(places: Sequence[int], name: str, wanted: int | None) -> Blocks:
            documents = [(self.documents[i].name, self._of(self.tokens, i)) for i in places]
            learnt, packs = self.learnt, packing
            if packs is None:
                sizes = [len(tokens) for _, tokens in documents]
                left_out = sum(size % length for size in sizes)
                packs = min(sizes) < length or left_out > _LEFT_OUT * sum(sizes)
            return Blocks(
                documents,
                length,
                seed=seed,
                stream=name,
                packing=packs,
                wanted=wanted,
                learnt=None if learnt is None else [self._of(learnt, i) for i in places],
            )

        if weights is None:
            return made(self._places("train"), stream, wanted)
        parts: dict[str, Blocks] = {}
        by_source = self._by_source()
        for name in weights:
            if name not in by_source:
                raise DataError(
                    f"sources.{name}.weight={weights[name]}: it has no document to train on; hold "
                    "fewer of them out, or leave the source out"
                )
            share = weights[name] / sum(weights.values())
            # A stretch of blocks has a few more or fewer of a source than its share.
            most = None if wanted is None else math.ceil(wanted * share) + 2
            try:
                parts[name] = made(by_source[name], f"{stream}/{name}", most)
            except DataError as error:
                raise DataError(f"source {name!r}: {error}") from error
        return MixedBlocks(parts, weights)

    def held_out_documents(self) -> list[tuple[str, np.ndarray]]:
        """Names and ids (int64 [tokens]) of the held-out documents, in order."""
        return [(name, ids.astype(np.int64)) for name, ids in self.arrays("held_out")]

    def arrays(self, split: Split) -> list[tuple[str, np.ndarray]]:
        """Names and ids of a split's documents, in order; ids are views of the mapped file."""
        return [(self.documents[i].name, self._of(self.tokens, i)) for i in self._places(split)]

    def _places(self, split: Split) -> list[int]:
        return [i for i, info in enumerate(self.documents) if info.split == split]

    def _of(self, values: np.ndarray, place: int) -> np.ndarray:
        """A document's part of an array with a value for each token."""
        end = self._ends[place]
        return values[end - self.documents[place].tokens : end]

    def _by_source(self) -> dict[str, list[int]]:
        """Places of the training documents of each source that has some."""
        documents: dict[str, list[int]] = {}
        first = 0
        for name, count in self.sources.items():
            places = range(first, first + count)
            if training := [i for i in places if self.documents[i].split == "train"]:
                documents[name] = training
            first += count
        return documents

    @cached_property
    def _ends(self) -> list[int]:
        return np.cumsum([info.tokens for info in self.documents]).tolist()


def save_corpus(
    folder: Path,
    key: str,
    documents: Sequence[DocumentInfo],
    tokens: np.ndarray,
    *,
    sources: Mapping[str, int] | None = None,
    learnt: Sequence[np.ndarray | None] = (),
) -> None:
    """Write tokens [sum of the documents' tokens], index, overlaps and manifest into `folder`.

    `sources` are as in `Corpus`. `learnt` says of each document which tokens are to be learnt, None
    for all.
    """
    corpus = Corpus("", key, tuple(documents), {}, np.asarray(tokens))
    overlaps = find_overlaps(dict(corpus.arrays("held_out")), corpus.arrays("train"))
    index = {
        "key": key,
        "documents": [astuple(info) for info in documents],
        "overlaps": {name: astuple(overlap) for name, overlap in overlaps.items()},
        "sources": dict(sources or {}),
    }
    if any(part is not None and not part.all() for part in learnt):
        parts = [
            np.ones(info.tokens, dtype=bool) if part is None else part
            for info, part in zip(documents, learnt, strict=True)
        ]
        np.save(folder / LEARNT_FILE, np.concatenate(parts), allow_pickle=False)
    np.save(folder / TOKENS_FILE, tokens, allow_pickle=False)
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    seal_folder(folder)


def load_corpus(name: str, folder: Path) -> Corpus:
    """Map the files that `save_corpus` wrote, after comparing both with their manifest.

    Hashing takes a second for each 900 million tokens of two bytes. Raises DataError if a file is
    damaged or missing, or an earlier version wrote the folder.
    """
    try:
        listed = verify(folder)["files"]
    except DamageError as error:
        raise DataError(f"the token cache {folder} is damaged: {error}") from error
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    if "sources" not in index:
        raise DataError(f"the token cache {folder} is of an earlier version")
    documents = tuple(DocumentInfo(*entry) for entry in index["documents"])
    overlaps = {name: Overlap(*entry) for name, entry in index["overlaps"].items()}
    return Corpus(
        name,
        index["key"],
        documents,
        overlaps,
        _mapped(folder / TOKENS_FILE),
        sources=index["sources"],
        learnt=_mapped(folder / LEARNT_FILE) if LEARNT_FILE in listed else None,
    )


def _mapped(file: Path) -> np.ndarray:
    """A plain view of a mapped file: slices of a memmap object are slow to make."""
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def refuse_overlap(corpus: Corpus, limit: float) -> None:
    """Check that held-out documents do not occur in training documents.

    Raises:
        DataError: a document equals a training document, or more than the share `limit` of its
            64-token windows occurs in training.
    """
    training = {info.sha256: info.name for info in corpus.documents if info.split == "train"}
    for info in corpus.documents:
        if info.split == "held_out" and info.sha256 in training:
            raise DataError(
                f"held-out document {info.name!r} is also the training document "
                f"{training[info.sha256]!r}; hold out both or remove one"
            )
    for name, overlap in corpus.overlaps.items():
        if overlap.fraction > limit:
            raise DataError(
                f"{overlap.fraction:.1%} of held-out document {name!r} occurs in training "
                f"documents, most of it in {overlap.document!r}; allowed are {limit:.1%}: hold "
                "that out too, or allow more with +data.max_held_out_overlap=SHARE"
            )
