"""Hub sources, read from local folders in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.data.config import HubDataset
from src.data.documents import DataError
from src.data.hub import hub_identity, read_hub


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    for split, titles in (("train", ["A", "", "C"]), ("validation", ["V"])):
        rows = [{"body": f"{split} {i}", "short_book_title": t} for i, t in enumerate(titles)]
        lines = "\n".join(map(json.dumps, rows))
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_rows_are_documents_in_order_with_their_titles(dataset: Path) -> None:
    source = HubDataset("hub", str(dataset), text_field="body")
    documents = [(document.name, document.text) for document in read_hub(source)]
    assert documents == [
        (f"{dataset}/train/0-A", "train 0"),
        (f"{dataset}/train/1", "train 1"),
        (f"{dataset}/train/2-C", "train 2"),
    ]


def test_max_documents_ends_the_stream(dataset: Path) -> None:
    source = HubDataset("hub", str(dataset), text_field="body", max_documents=2)
    assert [document.text for document in read_hub(source)] == ["train 0", "train 1"]


def test_splits_are_separate(dataset: Path) -> None:
    source = HubDataset("hub", str(dataset), split="validation", text_field="body")
    assert [document.name for document in read_hub(source)] == [f"{dataset}/validation/0-V"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tests"}, "split 'tests'.*Available splits"),
        ({"text_field": "text"}, "no field 'text'; there are: body, short_book_title"),
        ({"config": "big"}, "config big.*not found"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_name_is_refused(dataset: Path, changes: dict[str, str], message: str) -> None:
    source = HubDataset("hub", str(dataset), **({"text_field": "body"} | changes))
    with pytest.raises(DataError, match=message):
        list(read_hub(source))


def test_a_field_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(DataError, match="row 0: field 'text' is int"):
        list(read_hub(HubDataset("hub", str(tmp_path))))


def test_identity_follows_local_content_and_the_hub_revision(dataset: Path) -> None:
    source = HubDataset("hub", str(dataset))
    before = hub_identity(source)
    (dataset / "train.jsonl").write_text('{"body": "new"}')
    assert hub_identity(source) != before
    assert hub_identity(HubDataset("hub", "org/set", revision="abc")) == "revision abc"
