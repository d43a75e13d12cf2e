"""From texts to token blocks: read sources, hold documents out, tokenize once, cut and shuffle.

`DataConfig` describes a corpus. `prepare_corpus` makes a `Corpus` of it. The corpus gives `Blocks`,
which are random-access, sharded over ranks and resumable at any index.
"""

from src.data.blocks import Blocks
from src.data.config import DataConfig, HubDataset, PackagedText, Source, TextFiles
from src.data.corpus import Corpus, DocumentInfo
from src.data.documents import DataError, Document
from src.data.preparation import prepare_corpus
from src.data.reading import read_source

__all__ = [
    "Blocks",
    "Corpus",
    "DataConfig",
    "DataError",
    "Document",
    "DocumentInfo",
    "HubDataset",
    "PackagedText",
    "Source",
    "TextFiles",
    "prepare_corpus",
    "read_source",
]
