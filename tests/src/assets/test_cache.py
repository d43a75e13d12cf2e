"""Where downloads are kept, and what tells contents apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.assets.cache import CacheError, cache_dir, content_digest


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEARARD_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b"
    assert cache_dir().is_dir()


def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LINEARARD_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        CacheError, match=r"^the cache .* cannot be made \(File exists\); LINEARARD_CACHE="
    ):
        cache_dir()


def test_cache_dir_is_outside_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LINEARARD_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    checkout = Path(__file__).parents[3]
    assert not cache_dir().is_relative_to(checkout)


def test_content_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    for folder, name, text in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    a, b, c, d = (content_digest(tmp_path / folder) for folder in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
