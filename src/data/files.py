"""Local text files as documents. UTF-8 only. An error names the file and the place in it."""

from __future__ import annotations

import glob
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from src.data.config import HubDataset, TextFiles
from src.data.documents import DataError, Document

Rows = Iterator[tuple[str, str]]  # (suffix of the document's name, text)


def read_files(source: TextFiles) -> Iterator[Document]:
    """Yield the documents of all paths, files in sorted order within a folder or a glob.

    A file is read by the path that leads to it, also if that is a link: its name and its kind are
    those of the link. A file that several paths lead to is read once. Hidden files and folders are
    skipped, unless a path names them.

    Raises:
        DataError: a path is missing, a glob or a folder has no file, a kind of file is unknown,
            something is not a regular file, or a file's name or content cannot be used.
    """
    by_content: dict[Path, Path] = {}
    for path in (path for entry in source.paths for path in _matches(entry)):
        _check(path)
        by_content.setdefault(path.resolve(), path)
    files = list(by_content.values())
    for path, name in zip(files, _names(files), strict=True):
        try:
            for suffix, text in _READERS[path.suffix.lower()](path, source):
                yield Document(name + suffix, text)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _check(path: Path) -> None:
    """Refuse what is no regular file of a known kind with a name in UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError(f"cannot read {shown}: its name is not UTF-8; rename it") from None
    if not path.exists():
        raise DataError(f"cannot read {path}: it is a link to nothing; leave it out")
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise DataError(
            f"cannot read {path}: it is {_kind(mode)}, not a regular file; leave it out"
        )
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"cannot read {path}: its kind {path.suffix!r} is unknown; allowed: "
            f"{', '.join(sorted(_READERS))}"
        )


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _matches(entry: str) -> list[Path]:
    path = Path(os.path.expanduser(entry))
    try:
        if path.is_dir():
            files = sorted(f for f in _walk(path) if f.suffix.lower() in _READERS)
            if not files:
                raise DataError(
                    f"folder {entry!r} of paths holds no {', '.join(sorted(_READERS))} file: give "
                    "another folder, or files"
                )
            return files
        if os.path.lexists(path):
            return [path]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if glob.has_magic(entry):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [file for file in matches if not file.is_dir()]
        if not files:
            raise DataError(f"paths entry {entry!r} matches no file{_below(path)}: {_ALLOWED}")
        return files
    raise DataError(f"paths entry {entry!r} does not exist{_below(path)}: {_ALLOWED}")


_ALLOWED = "give files, folders or globs that are there"


def _below(path: Path) -> str:
    return "" if path.is_absolute() else f" (below {Path.cwd()})"


def _walk(folder: Path) -> Iterator[Path]:
    """What a folder and its subfolders hold, without what is hidden. Links are followed once."""

    def refuse(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for here, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        subfolders[:] = [] if real in seen else [n for n in subfolders if not n.startswith(".")]
        if real not in seen:
            yield from (Path(here, name) for name in names if not name.startswith("."))
        seen.add(real)


def _names(files: list[Path]) -> list[str]:
    """Paths below the common folder, without suffix unless two would then be equal."""
    absolute = [Path(os.path.abspath(file)) for file in files]
    common = Path(os.path.commonpath([file.parent for file in absolute]))
    relative = [file.relative_to(common) for file in absolute]
    stems = [path.with_suffix("").as_posix() for path in relative]
    uses = Counter(stems)
    return [
        path.as_posix() if uses[stem] > 1 else stem
        for path, stem in zip(relative, stems, strict=True)
    ]


def decode(content: bytes, path: Path | str, start: int = 0) -> str:
    """UTF-8 text without a byte order mark and with plain line ends.

    `path` is the file, or the place in it where `content` begins, at position `start`. Raises
    DataError for bytes that cannot be decoded, and for NUL bytes.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        position = start + error.start
        raise DataError(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} at position {position}; "
            f"convert the file, for example with `iconv -t utf-8`"
        ) from error
    if (nul := content.find(0)) >= 0:
        # ASCII in UTF-16 is valid UTF-8: a NUL before or after each letter.
        raise DataError(
            f"{path} is not text in UTF-8: NUL byte at position {start + nul}; if it is UTF-16, "
            "convert it with `iconv -f utf-16le -t utf-8` (or utf-16be), else leave it out"
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _read_text(path: Path, source: TextFiles) -> Rows:
    if source.messages_field is not None:
        raise DataError(
            f"{path} has no rows with messages (messages_field={source.messages_field}); give "
            ".jsonl or .parquet files"
        )
    yield "", decode(path.read_bytes(), path)


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that has one a line, each after its place, for messages.

    Raises DataError for a line that holds something else, OSError as the file does.
    """
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            text = decode(line, f"{where},", position)
            position += len(line)
            if text.strip():
                yield where, _parse(text, where)


def _read_jsonl(path: Path, source: TextFiles) -> Rows:
    for row, (where, record) in enumerate(json_rows(path)):
        yield f"/{row}", content_of(record, source, where)


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        fault = f"{error.msg} (column {error.colno})"
        raise DataError(f"{where}: malformed JSON: {fault}; repair or remove the line") from error
    except RecursionError:
        raise DataError(f"{where}: JSON is nested too deeply; leave the row out") from None
    except ValueError as error:
        # Python does not convert integers of thousands of digits.
        raise DataError(f"{where}: a number is too long ({error}); write it as text") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DataError(f"{where}: a JSON object is needed, not {kind}; repair or remove the line")
    return value


def text_of(record: dict[str, Any], text_field: str, where: str) -> str:
    """A record's text; a null one is empty."""
    if text_field not in record:
        raise DataError(
            f"{where}: no field {text_field!r}; there are: {', '.join(record)}; set text_field"
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


def content_of(record: dict[str, Any], source: TextFiles | HubDataset, where: str) -> str:
    """A record's text; of a chat its messages as JSON, which `tokenize_chats` reads again."""
    if source.messages_field is None:
        return text_of(record, source.text_field, where)
    if source.messages_field not in record:
        raise DataError(
            f"{where}: no field {source.messages_field!r}; there are: {', '.join(record)}; set "
            "messages_field"
        )
    messages = record[source.messages_field]
    if messages is None or messages == []:
        return ""
    if not isinstance(messages, list):
        raise DataError(
            f"{where}: field {source.messages_field!r} is {type(messages).__name__}, not a list of "
            "messages"
        )
    for number, message in enumerate(messages):
        keys = message if isinstance(message, dict) else {}
        if not all(isinstance(keys.get(key), str) for key in ("role", "content")):
            raise DataError(
                f"{where}: message {number} of field {source.messages_field!r} needs role and "
                "content, both texts"
            )
    kept = [{"role": m["role"], "content": m["content"]} for m in messages]
    return text_of({"text": json.dumps(kept, ensure_ascii=False)}, "text", where)


def _read_parquet(path: Path, source: TextFiles) -> Rows:
    import pyarrow
    import pyarrow.parquet

    field = source.messages_field or source.text_field
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                setting = "text_field" if source.messages_field is None else "messages_field"
                raise DataError(
                    f"{path}: no column {field!r}; there are: {', '.join(columns)}; set {setting}"
                )
            batches = file.iter_batches(batch_size=64, columns=[field])
            for row, value in enumerate(value for batch in batches for value in batch.column(0)):
                where = f"{path}, row {row}"
                record = {field: _of_arrow(value, where)}
                yield f"/{row}", content_of(record, source, where)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable parquet file ({error}): write it again, or leave it out"
        ) from error


def _of_arrow(value: Any, where: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error.reason}); write the file again") from error


_READERS: dict[str, Callable[[Path, TextFiles], Rows]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
