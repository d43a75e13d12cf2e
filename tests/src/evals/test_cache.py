"""Results by their whole key."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from src.evals.cache import ResultCache


def test_an_equal_key_gives_the_value_and_another_none(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    assert cache.get({"task": "a", "limit": None}) is None
    cache.put({"task": "a", "limit": None}, {"score": [1.0]})
    assert cache.get({"limit": None, "task": "a"}) == {"score": [1.0]}
    assert cache.get({"task": "a", "limit": 5}) is None


def flipped(content: bytes) -> bytes:
    """The first byte of the compressed part changed, which zlib refuses."""
    return content[:10] + bytes([content[10] ^ 0xFF]) + content[11:]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-9], id="cut"),
        pytest.param(flipped, id="flipped-byte"),
        pytest.param(lambda content: gzip.compress(b"[1]"), id="a-list"),
        pytest.param(lambda content: gzip.compress(b"{}"), id="no-key"),
    ],
)
def test_a_damaged_entry_is_no_answer(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = ResultCache(tmp_path)
    cache.put({"task": "a"}, 1)
    (file,) = tmp_path.rglob("*.json.gz")
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get({"task": "a"}) is None
    cache.put({"task": "a"}, 2)
    assert cache.get({"task": "a"}) == 2


def test_without_a_folder_nothing_is_kept() -> None:
    cache = ResultCache(None)
    cache.put({"task": "a"}, 1)
    assert cache.get({"task": "a"}) is None
