"""Samples are made once, and again when anything that decides them changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.evals.ruler import loading
from src.evals.ruler.loading import MaterialConfig
from src.evals.ruler.material import Material
from src.evals.ruler.store import SampleStore


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, material: Material) -> list[str]:
    """Parts of the material in the order they were read."""
    read: list[str] = []

    def part(config: MaterialConfig, name: str) -> Any:
        read.append(name)
        return material.questions.get(name) or getattr(material, name)

    monkeypatch.setattr(loading, "part", part)
    return read


def store(folder: Path, tokenizer: Any, seed: int = 0) -> SampleStore:
    return SampleStore(tokenizer, MaterialConfig(), seed, folder)


def test_a_second_store_reads_what_the_first_wrote(
    tmp_path: Path, byte_tokenizer: Any, made: list[str]
) -> None:
    first = store(tmp_path, byte_tokenizer).samples("niah_single_1", 2048, 3)
    (file,) = tmp_path.glob("niah_single_1-2048-*.jsonl")
    before = (file.stat().st_mtime_ns, file.read_bytes())
    again = store(tmp_path, byte_tokenizer).samples("niah_single_1", 2048, 2)
    assert again == first[:2]
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    more = store(tmp_path, byte_tokenizer).samples("niah_single_1", 2048, 4)
    assert more[:3] == first
    assert file.read_bytes().startswith(before[1])


def test_only_what_a_task_draws_from_is_read(
    tmp_path: Path, byte_tokenizer: Any, made: list[str]
) -> None:
    here = store(tmp_path, byte_tokenizer)
    here.samples("vt", 2048, 1)
    assert made == []
    here.samples("qa_squad", 2048, 1)
    assert made == ["squad"]
    here.depths(2048, (0.0, 50.0), 1)
    assert sorted(made[1:]) == ["adjectives", "nouns", "sentences"]
    here.samples("niah_single_2", 2048, 1)
    assert len(made) == 4


def test_seeds_and_depths_have_files_of_their_own(
    tmp_path: Path, byte_tokenizer: Any, made: list[str]
) -> None:
    store(tmp_path, byte_tokenizer).samples("fwe", 2048, 1)
    store(tmp_path, byte_tokenizer, seed=1).samples("fwe", 2048, 1)
    assert len(list(tmp_path.glob("fwe-*.jsonl"))) == 2
    one = store(tmp_path, byte_tokenizer).depths(2048, (0.0, 50.0), 2)
    other = store(tmp_path, byte_tokenizer).depths(2048, (100.0,), 4)
    assert [s.depth for s in one] == [0.0, 0.0, 50.0, 50.0]
    assert [s.depth for s in other] == [100.0] * 4


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[:50] + b"\n", id="cut"),
        pytest.param(lambda text: b"\xff" + text, id="no-utf-8"),
        pytest.param(lambda text: text.replace(b" the ", b" tha ", 1), id="another-letter"),
        pytest.param(lambda text: b"[]\n", id="a-list"),
    ],
)
def test_a_damaged_file_is_named_and_made_again(
    tmp_path: Path,
    byte_tokenizer: Any,
    made: list[str],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
) -> None:
    whole = store(tmp_path, byte_tokenizer).samples("fwe", 2048, 1)
    (file,) = tmp_path.glob("fwe-*.jsonl")
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert store(tmp_path, byte_tokenizer).samples("fwe", 2048, 1) == whole
    assert file.read_bytes() == before
    assert f"{file.name}" in (said := capsys.readouterr().err)
    assert "damaged, and made again" in said


@pytest.mark.slow
def test_many_samples_are_made_in_processes_and_are_the_same(
    tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.evals.ruler import store as module

    wanted = [("vt", 2048), ("fwe", 2048), ("vt", 100)]
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: {0, 1})
    store(tmp_path / "none", byte_tokenizer).prepare(wanted, {2048: 1, 100: 1})
    assert not list(tmp_path.glob("none/*.jsonl"))
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    store(tmp_path / "pool", byte_tokenizer).prepare(wanted, {2048: 2, 100: 2})
    for task in ("vt", "fwe"):
        alone = store(tmp_path / "alone", byte_tokenizer)
        alone.samples(task, 2048, 2)
        (file,) = (tmp_path / "pool").glob(f"{task}-2048-*.jsonl")
        assert file.read_bytes() == alone.file(task, 2048).read_bytes()
    assert not list(tmp_path.glob("pool/vt-100-*.jsonl"))
