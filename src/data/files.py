"""Local text files as documents. UTF-8 only. An error names the file and the place in it."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from src.data.config import TextFiles
from src.data.documents import DataError, Document

Rows = Iterator[tuple[str, str]]  # (suffix of the document's name, text)


def read_files(source: TextFiles) -> Iterator[Document]:
    """Yield the documents of all paths, files in sorted order within a folder or a glob.

    Raises:
        DataError: a path is missing, a glob or a folder has no file, a kind of file is unknown,
            or a file's content cannot be used.
    """
    files = _expand(source.paths)
    for path, name in zip(files, _names(files), strict=True):
        for suffix, text in _READERS[path.suffix.lower()](path, source.text_field):
            yield Document(name + suffix, text)


def _expand(paths: tuple[str, ...]) -> list[Path]:
    """Files in the order of the settings, each once."""
    files: dict[Path, None] = {}
    for entry in paths:
        for path in _matches(entry):
            if path.suffix.lower() not in _READERS:
                raise DataError(
                    f"cannot read {path}: its kind {path.suffix!r} is unknown; allowed: "
                    f"{', '.join(sorted(_READERS))}"
                )
            files[path.resolve()] = None
    return list(files)


def _matches(entry: str) -> list[Path]:
    path = Path(entry).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _READERS and f.is_file())
        if not files:
            raise DataError(f"folder {entry!r} holds no {', '.join(sorted(_READERS))} file")
        return files
    if glob.has_magic(entry):
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [file for file in files if file.is_file()]
        if not files:
            raise DataError(f"paths entry {entry!r} matches no file (below {Path.cwd()})")
        return files
    raise DataError(f"paths entry {entry!r} does not exist (below {Path.cwd()})")


def _names(files: list[Path]) -> list[str]:
    """Paths below the common folder, without suffix unless two would then be equal."""
    common = Path(os.path.commonpath([file.parent for file in files]))
    relative = [file.relative_to(common) for file in files]
    stems = [path.with_suffix("").as_posix() for path in relative]
    uses = Counter(stems)
    return [
        path.as_posix() if uses[stem] > 1 else stem
        for path, stem in zip(relative, stems, strict=True)
    ]


def decode(content: bytes, path: Path, start: int = 0) -> str:
    """UTF-8 text without a byte order mark and with plain line ends.

    Raises:
        DataError: undecodable bytes; `start` is the content's position in the file.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        position = start + error.start
        raise DataError(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} at position {position}; "
            f"convert the file, for example with `iconv -t utf-8`"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _read_text(path: Path, text_field: str) -> Rows:
    yield "", decode(path.read_bytes(), path)


def _read_jsonl(path: Path, text_field: str) -> Rows:
    position, row = 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = decode(line, path, position)
            position += len(line)
            if text.strip():
                where = f"{path}, line {number}"
                yield f"/{row}", text_of(_parse(text, where), text_field, where)
                row += 1


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: malformed JSON: {error.msg} (column {error.colno})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(value).__name__}")
    return value


def text_of(record: dict[str, Any], text_field: str, where: str) -> str:
    """A record's text; a null one is empty."""
    if text_field not in record:
        raise DataError(
            f"{where}: no field {text_field!r}; there are: {', '.join(record)} (set text_field)"
        )
    text = record[text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"{where}: field {text_field!r} is {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {text_field!r} holds half of a surrogate pair at character "
            f"{error.start}, which is not Unicode text"
        ) from error
    return text


def _read_parquet(path: Path, text_field: str) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                raise DataError(
                    f"{path}: no column {text_field!r}; there are: {', '.join(columns)} "
                    "(set text_field)"
                )
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=[text_field]):
                for record in batch.to_pylist():
                    yield f"/{row}", text_of(record, text_field, f"{path}, row {row}")
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error


_READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
