"""Local texts: names, order, kinds, and every fault by file and place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.data.config import TextFiles
from src.data.documents import DataError
from src.data.files import read_files


def read(*paths: Path | str, text_field: str = "text") -> dict[str, str]:
    source = TextFiles("files", tuple(map(str, paths)), text_field)
    return {document.name: document.text for document in read_files(source)}


def write_parquet(path: Path, columns: dict[str, list[object]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "a.md", "b/z.txt", "b/ignored.pdf"):
        (tmp_path / name).write_text(name)
    texts = read(tmp_path)
    assert texts == {"a": "a.md", "b/z": "b/z.txt", "c": "c.txt"}
    assert list(texts) == ["a", "b/z", "c"]


def test_names_are_relative_to_the_common_folder(tmp_path: Path) -> None:
    for name in ("one/x.txt", "two/x.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    assert list(read(tmp_path / "two" / "x.txt")) == ["x"]
    assert list(read(tmp_path / "two/x.txt", tmp_path / "one/x.txt")) == ["two/x", "one/x"]


def test_equal_stems_keep_their_suffixes(tmp_path: Path) -> None:
    for name in ("x.txt", "x.md", "y.txt"):
        (tmp_path / name).write_text(name)
    assert list(read(tmp_path)) == ["x.md", "x.txt", "y"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    assert list(read(tmp_path, tmp_path / "x.txt", tmp_path / "*.txt")) == ["x"]


def test_globs_go_down(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/x.txt").write_text("text")
    assert list(read(tmp_path / "**/*.txt")) == ["x"]


def test_byte_order_mark_and_line_ends_are_plain(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeffé\r\nb\n".encode())
    assert read(tmp_path / "x.txt") == {"x": "é\nb\n"}


def test_rows_of_jsonl_are_documents(tmp_path: Path) -> None:
    rows = [{"body": "é"}, {"body": None}, {"body": "b", "other": 1}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "x.jsonl").write_text(lines, encoding="utf-8")
    assert read(tmp_path, text_field="body") == {"x/0": "é", "x/1": "", "x/2": "b"}


def test_rows_of_parquet_are_documents(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(200)]
    write_parquet(tmp_path / "x.parquet", {"text": [*texts], "n": [*range(200)]})
    assert list(read(tmp_path).values()) == texts
    assert list(read(tmp_path))[-1] == "x/199"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"abc\xff", r"x\.txt is not UTF-8: byte 0xff at position 3"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"byte 0xe9 at position 24"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl, line 2: malformed JSON"),
        ("x.jsonl", b"\n[1]\n", r"line 2: a JSON object is needed, not list"),
        ("x.jsonl", b'{"body": "a"}\n', r"line 1: no field 'text'; there are: body"),
        ("x.jsonl", b'{"text": 3}\n', r"line 1: field 'text' is int, not text"),
        ("x.jsonl", b'{"text": "a\\ud800"}\n', r"half of a surrogate pair at character 1"),
        (
            "x.txt",
            "no mark".encode("utf-16-le"),
            r"x\.txt is not .*: NUL byte at position 1.*iconv",
        ),
        ("x.md", bytes(64), r"x\.md is not text in UTF-8: NUL byte at position 0"),
        ("x.jsonl", b'{"text": "a"}\n\0\0\n', r"x\.jsonl, line 2, is not text .* position 14"),
        ("x.jsonl", b'{"text": "a"}\n' + b"[" * 90_000, r"line 2: JSON is nested too deeply"),
        ("x.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", r"line 1: a number is too long"),
        ("x.parquet", b"PAR1 no", r"x\.parquet is not a readable parquet file"),
        ("x.csv", b"a,b", r"its kind '\.csv' is unknown; allowed: \.jsonl, \.md, \.parquet, \.txt"),
    ],
)
def test_a_fault_names_file_and_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_missing_parquet_column_lists_the_others(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", {"body": ["a"], "n": [1]})
    with pytest.raises(DataError, match="no column 'text'; there are: body, n"):
        read(tmp_path)
    with pytest.raises(DataError, match="row 0: field 'n' is int, not text"):
        read(tmp_path, text_field="n")


def test_paths_that_give_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"entry '.*nosuch\.txt' does not exist"):
        read(tmp_path / "nosuch.txt")
    with pytest.raises(DataError, match=r"entry '.*\*\.txt' matches no file"):
        read(tmp_path / "*.txt")
    with pytest.raises(DataError, match=r"holds no \.jsonl, \.md, \.parquet, \.txt file"):
        read(tmp_path)


def test_parquet_with_text_that_is_not_utf_8_names_the_row(tmp_path: Path) -> None:
    import pyarrow

    raw = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    write_parquet(tmp_path / "x.parquet", {"text": text})
    with pytest.raises(DataError, match=r"x\.parquet, row 1 is not UTF-8"):
        read(tmp_path)


def test_a_link_is_read_by_its_own_name_and_kind(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "blob").write_text("linked")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "book.txt").symlink_to(tmp_path / "store" / "blob")
    (tmp_path / "texts" / "own.txt").write_text("own")
    assert read(tmp_path / "texts") == {"book": "linked", "own": "own"}
    assert read(tmp_path / "texts" / "book.txt") == {"book": "linked"}
    (tmp_path / "texts" / "twice.txt").symlink_to(tmp_path / "texts" / "own.txt")
    assert list(read(tmp_path / "texts")) == ["book", "own"]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("x")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "shared").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "texts") == {"x": "x"}


def test_the_home_folder_is_meant_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    assert read("~/x.txt") == read("~/*.txt") == read("~") == {"x": "x"}
    with pytest.raises(DataError, match=r"'~nobody-here/x' does not exist"):
        read("~nobody-here/x")


def test_hidden_files_are_skipped_unless_named(tmp_path: Path) -> None:
    for name in ("seen.txt", ".hidden.txt", ".git/x.txt", ".ipynb_checkpoints/y.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(read(tmp_path)) == list(read(tmp_path / "**/*.txt")) == ["seen"]
    assert list(read(tmp_path / ".hidden.txt")) == [".hidden"]


def test_what_is_no_file_with_a_name_is_refused(tmp_path: Path) -> None:
    import os

    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "x.txt")
    for path in (tmp_path / "pipe", tmp_path / "pipe/x.txt", tmp_path / "pipe/*"):
        with pytest.raises(DataError, match=r"cannot read .*x\.txt: it is a FIFO, not a regular"):
            read(path)
    with pytest.raises(DataError, match="cannot read /dev/null: it is a device"):
        read("/dev/null")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nosuch")
    for path in (tmp_path / "broken.txt", tmp_path / "b*"):
        with pytest.raises(DataError, match=r"broken\.txt: it is a link to nothing"):
            read(path)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    with pytest.raises(DataError, match=r"caf\\xe9\.txt: its name is not UTF-8; rename it"):
        read(tmp_path / "bytes")


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.txt").write_text("x")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .*x\.txt: Permission denied"):
        read(tmp_path)
