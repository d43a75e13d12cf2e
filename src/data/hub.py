"""Hub data sets as documents, streamed, without running code from the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from src.assets.cache import content_digest
from src.data.config import HubDataset
from src.data.documents import DataError, Document
from src.data.files import content_of

TITLE_FIELD = "short_book_title"


def read_hub(source: HubDataset) -> Iterator[Document]:
    """Yield at most `max_documents` rows in order; raises DataError if they cannot be reached."""
    for index, row in enumerate(islice(_rows(source), source.max_documents)):
        text = content_of(row, source, f"data set {source.path!r}, row {index}")
        title = f"-{row[TITLE_FIELD]}" if row.get(TITLE_FIELD) else ""
        yield Document(f"{source.path}/{source.split}/{index}{title}", text)


def hub_identity(source: HubDataset) -> str:
    """A key for the content of a hub source, whose texts are not read only to compare them.

    For a local folder it covers the files' bytes. For the hub it is the revision of the settings.
    """
    folder = Path(os.path.expanduser(source.path))
    if not folder.is_dir():
        return f"revision {source.revision}"
    return f"content {content_digest(folder)}"


def _rows(source: HubDataset) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        yield from load_dataset(
            os.path.expanduser(source.path),
            name=source.config,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    # Hub, network, file-format and naming faults share no base class.
    except Exception as error:
        raise DataError(
            f"cannot read data set {source.path!r} (config {source.config}, split "
            f"{source.split!r}, revision {source.revision}): {type(error).__name__}: {error}. "
            "Check the names and the network, or read local texts with a source of type 'files'"
        ) from error
