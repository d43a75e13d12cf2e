"""Parcels come apart as they were put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import parcels


def packed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, bytes], size: int
) -> list[Path]:
    """Parcels of at most `size` bytes with these files of a cache."""
    for name, content in files.items():
        (folder / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cache" / name).write_bytes(content)
    with monkeypatch.context() as patched:
        patched.setattr(parcels, "PARCEL_BYTES", size)
        patched.setenv("LINEARARD_CACHE", str(folder / "cache"))
        parcels.pack("long", [folder / "cache" / name for name in files], folder / "parcels")
    return sorted((folder / "parcels").iterdir())


def test_parcels_may_come_one_at_a_time_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("LINEARARD_CACHE", str(cache))
    files = {"ruler/a.jsonl": b"one\n" * 50, "packages/b/c.txt": bytes(range(256)) * 9}
    made = packed(monkeypatch, tmp_path / "there", files, 250)
    assert len(made) > 2
    for number, parcel in enumerate(reversed(made)):
        arriving = tmp_path / f"arriving-{number}"
        arriving.mkdir()
        parcel.rename(arriving / parcel.name)
        assert not (cache / "ruler").exists()
        parcels.unpack("long", arriving)
    assert f"2 of {len(made)} parcels are here" in capsys.readouterr().out
    assert {name: (cache / name).read_bytes() for name in files} == files


def test_nothing_to_unpack_and_mixed_packings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINEARARD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no parcels"):
        parcels.unpack("long", tmp_path / "empty")
    first, *_ = packed(monkeypatch, tmp_path / "one", {"a": b"1"}, 50)
    first.rename(tmp_path / "empty" / first.name)
    parcels.unpack("long", tmp_path / "empty")
    packed(monkeypatch, tmp_path / "two", {"a": b"2"}, 1000)
    with pytest.raises(SystemExit, match="different packings"):
        parcels.unpack("long", tmp_path / "two" / "parcels")
