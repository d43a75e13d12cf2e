"""From settings to a corpus: survey the sources, tokenize texts not cached, check the result."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from src.assets.cache import CACHE_VARIABLE, cache_dir
from src.data.config import DataConfig, HubDataset, PackagedText, Source
from src.data.corpus import Corpus, DocumentInfo, Split, load_corpus, refuse_overlap, save_corpus
from src.data.documents import DataError, Document, matches_any, refuse_idle_patterns
from src.data.hub import hub_identity
from src.data.reading import read_source
from src.data.survey import survey
from src.data.tokenization import (
    chat_template,
    token_dtype,
    tokenize,
    tokenize_chats,
    tokenizer_identity,
)
from src.progress import meter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # of the cache; a change makes older caches be built again


def prepare_corpus(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: Path | None = None,
    key: str | None = None,
) -> Corpus:
    """Read, tokenize and cache a corpus, or load it if the cache holds it.

    Local texts are read at every call, since their content is part of the cache's key; packaged
    ones where they were not read before. A hub source is read only to be tokenized. Several
    processes may call this at once: one tokenizes, the others wait.

    `cache` is the parent of the `tokens` folder; `src.assets.cache_dir()` when None. `key` is the
    corpus's key, if it has been prepared just before: texts are then read only on a machine whose
    cache does not hold it. The tokenizer must be a fast one.

    Raises:
        AssetError: a package cannot be fetched.
        DataError: a text cannot be read, a pattern matches nothing, two names are equal, no
            training text is left, or a held-out document that was named occurs in training.
    """
    shelf = (cache or cache_dir()) / "tokens"
    if key is not None and (cached := _opened(config.name, shelf / key[:32])) is not None:
        return cached
    survey = _Survey(config)
    key = _key(config, survey, tokenizer)
    folder = shelf / key[:32]
    # A cache that holds the corpus may be read-only.
    corpus = _opened(config.name, folder) or _made(config, survey, key, tokenizer, folder)
    try:
        refuse_overlap(corpus, config.max_held_out_overlap)
    except DataError as error:
        if not config.chooses_held_out:
            raise
        # Nobody named these documents, so this is no reason not to train.
        print(
            f"data.held_out_share={config.held_out_share:g} has chosen documents that training "
            f"knows: {error}. Perplexity of held-out text will be too good; name documents of your "
            "own with data.held_out",
            file=sys.stderr,
        )
    return corpus


def _made(
    config: DataConfig, survey: _Survey, key: str, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> Corpus:
    """Tokenize into `folder`, unless another process has done so meanwhile."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            corpus = _opened(config.name, folder)
            if corpus is None:
                shutil.rmtree(folder, ignore_errors=True)
                _build(config, survey, key, tokenizer, folder)
                corpus = load_corpus(config.name, folder)
            return corpus
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DataError(
            f"the tokens of corpus {config.name!r} cannot be written to {folder.parent}: "
            f"{error.strerror}; make that folder writable, or let {CACHE_VARIABLE} name another"
        ) from error


def _opened(name: str, folder: Path) -> Corpus | None:
    """The cached corpus; None if it is not there, or damaged, which is said."""
    if not folder.exists():
        return None
    try:
        return load_corpus(name, folder)
    except DataError as error:
        print(f"{error}; its texts are tokenized again", file=sys.stderr)
        return None


class _Survey:
    """The facts before anything is tokenized: names, splits and hashes of local documents."""

    def __init__(self, config: DataConfig) -> None:
        self.entries: list[Any] = []
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.characters = 0
        self.complete = True
        for label, source, split in _sources(config):
            if isinstance(source, HubDataset):
                self.complete = False
                self.entries.append([_facts(source), hub_identity(source), split, config.held_out])
            else:
                with _faults_of(config, label):
                    self._read(source, split, config.held_out)
        self.held_out = config.held_out
        if self.complete:
            _check_names(self.names, config)
            if config.chooses_held_out:
                self._hold_out(config.held_out_share)

    def _hold_out(self, share: float) -> None:
        """Hold documents out in the order of their texts' hashes, while they fit into a share."""
        room = int(share * self.characters)
        chosen: list[str] = []
        pairs = zip(self.entries, self.sizes, strict=True)
        for entry, size in sorted(pairs, key=lambda pair: pair[0][1]):
            if size <= room:
                room -= size
                chosen.append(entry[0])
                entry[2] = "held_out"
        self.held_out = tuple(glob.escape(name) for name in chosen)

    def _read(self, source: Source, split: Split, patterns: Sequence[str]) -> None:
        documents = survey(source)
        for document in documents:
            self.names.append(document.name)
            self.sizes.append(document.characters)
            self.characters += document.characters
            split_here = _split(document.name, split, patterns)
            self.entries.append([document.name, document.sha256, split_here])
        if not documents:
            raise DataError("it holds no text, all its documents are empty: give other texts")


def _sources(config: DataConfig) -> Iterator[tuple[str, Source, Split]]:
    """All sources with their labels, and the split of documents that match no pattern."""
    for label, source in config.sources.items():
        yield label, source, "train"
    for label, source in config.held_out_sources.items():
        yield label, source, "held_out"


@contextmanager
def _faults_of(config: DataConfig, label: str) -> Iterator[None]:
    """Inside the block, the message of a DataError begins with the setting of this source."""
    group = "sources" if label in config.sources else "held_out_sources"
    try:
        yield
    except DataError as error:
        raise DataError(f"data.{group}.{label}: {error}") from error


def _split(name: str, default: Split, patterns: Sequence[str]) -> Split:
    return "held_out" if matches_any(name, patterns) else default


def _facts(source: HubDataset) -> dict[str, Any]:
    """What decides a data set's texts: its weight decides how much is read, not what it holds."""
    return {k: v for k, v in asdict(source).items() if k != "weight"}


def _key(config: DataConfig, survey: _Survey, tokenizer: PreTrainedTokenizerBase) -> str:
    parts = [FORMAT, tokenizer_identity(tokenizer), config.max_tokens, survey.entries]
    if config.weights is not None:
        # Without a limit all of every source is read, whatever its weight.
        parts.append(["sources", config.weights if config.max_tokens else list(config.weights)])
    chats = {
        name: source.answers_only
        for name, source, _ in _sources(config)
        if not isinstance(source, PackagedText) and source.messages_field is not None
    }
    if chats:
        parts.append(["chats", chats, chat_template(tokenizer)])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_names(names: Sequence[str], config: DataConfig) -> None:
    """Refuse equal names, and patterns that match nothing."""
    for name, uses in Counter(names).items():
        if uses > 1:
            raise DataError(
                f"two documents are named {name!r}; keep each text in one source, or rename a file"
            )
    refuse_idle_patterns("data.held_out", config.held_out, names)


def _build(
    config: DataConfig, survey: _Survey, key: str, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Tokenize into a temporary folder that becomes `folder` when it is complete."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-") as temporary:
        staging = Path(temporary) / "corpus"
        staging.mkdir()
        raw = Path(temporary) / "tokens.raw"
        writer = _tokenize_into(raw, config, survey, tokenizer)
        infos = writer.infos
        _check_names([info.name for info in infos], config)
        if not any(info.split == "train" for info in infos):
            raise DataError(
                f"data.held_out={list(config.held_out)}: no document to train on: of {len(infos)} "
                "with text, all are held out: give patterns that match fewer, or more texts"
            )
        tokens = np.memmap(raw, dtype=token_dtype(tokenizer), mode="r")
        save_corpus(staging, key, infos, tokens, sources=writer.sources, learnt=writer.learnt)
        os.replace(staging, folder)


def _tokenize_into(
    path: Path, config: DataConfig, survey: _Survey, tokenizer: PreTrainedTokenizerBase
) -> _Writer:
    """Write all ids to one file without a header; returns what has been written."""
    # Counted in tokens if there is a limit, else in characters if their number is known.
    total = config.max_tokens or (survey.characters if survey.complete else None)
    with path.open("wb") as file, meter(f"tokenizing corpus {config.name}", total) as shown:
        writer = _Writer(file, config.max_tokens)
        for label, source, split in _sources(config):
            writer.begin(label, _limit(config, label))
            documents = writer.wanted(source, split, survey.held_out)
            if isinstance(source, PackagedText) or source.messages_field is None:
                tokenized = ((d, ids, None) for d, ids in tokenize(documents, tokenizer))
            else:
                answers_only = source.answers_only
                tokenized = tokenize_chats(documents, tokenizer, answers_only=answers_only)
            with _faults_of(config, label):
                for document, ids, learnt in tokenized:
                    writer.add(document, ids, _split(document.name, split, survey.held_out), learnt)
                    shown.advance(len(ids) if config.max_tokens else len(document.text))
    return writer


def _limit(config: DataConfig, label: str) -> int | None:
    """Training tokens at which a source with a weight is left; None if it has none."""
    if config.weights is None or config.max_tokens is None or label not in config.weights:
        return None
    share = config.weights[label] / sum(config.weights.values())
    return max(1, math.ceil(config.max_tokens * share))


class _Writer:
    """Appends ids to a file and keeps count of training tokens against the limit."""

    def __init__(self, file: IO[bytes], limit: int | None) -> None:
        self.file = file
        self.limit = limit
        self.train_tokens = 0
        self.infos: list[DocumentInfo] = []  # documents that have been written
        self.sources: dict[str, int] = {}  # how many of them came from each source, in order
        self.learnt: list[np.ndarray | None] = []  # which tokens, by document; None for all

    def begin(self, label: str, limit: int | None) -> None:
        """Go on with a source, which may have a limit of its own."""
        self.sources[label] = 0
        self._label = label
        if limit is not None:
            self.limit, self.train_tokens = limit, 0

    @property
    def full(self) -> bool:
        return self.limit is not None and self.train_tokens >= self.limit

    def wanted(self, source: Source, split: Split, patterns: Sequence[str]) -> Iterator[Document]:
        """A source's documents, without training documents beyond the limit."""
        for document in read_source(source):
            if not (self.full and _split(document.name, split, patterns) == "train"):
                yield document
            elif isinstance(source, HubDataset):
                return  # the data set may be endless

    def add(
        self, document: Document, ids: np.ndarray, split: Split, learnt: np.ndarray | None = None
    ) -> None:
        """Write a document, unless it is beyond the limit."""
        if split == "train":
            if self.full:
                return  # it was in the batch of the document that reached the limit
            self.train_tokens += len(ids)
        ids.tofile(self.file)
        text_hash = hashlib.sha256(document.text.encode()).hexdigest()
        self.infos.append(DocumentInfo(document.name, len(ids), text_hash, split))
        self.sources[self._label] += 1
        self.learnt.append(learnt)
