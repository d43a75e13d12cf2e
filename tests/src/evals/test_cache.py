"""Results by their whole key."""

from __future__ import annotations

from pathlib import Path

from src.evals.cache import ResultCache


def test_an_equal_key_gives_the_value_and_another_none(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    assert cache.get({"task": "a", "limit": None}) is None
    cache.put({"task": "a", "limit": None}, {"score": [1.0]})
    assert cache.get({"limit": None, "task": "a"}) == {"score": [1.0]}
    assert cache.get({"task": "a", "limit": 5}) is None


def test_a_damaged_entry_is_no_answer(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.put({"task": "a"}, 1)
    (file,) = tmp_path.rglob("*.json.gz")
    file.write_bytes(file.read_bytes()[:-9])
    assert cache.get({"task": "a"}) is None
    cache.put({"task": "a"}, 2)
    assert cache.get({"task": "a"}) == 2


def test_without_a_folder_nothing_is_kept() -> None:
    cache = ResultCache(None)
    cache.put({"task": "a"}, 1)
    assert cache.get({"task": "a"}) is None
