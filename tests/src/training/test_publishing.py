"""The upload of an export, without a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from src.models.exporting.config import ExportConfig
from src.models.exporting.whole import ExportError
from src.settings.strict import ConfigError
from src.training.publishing import check_push, push

SETTINGS = ExportConfig(push="someone/a-model")


@pytest.mark.parametrize("name", ["a-model", "some one/model", "a/b/c", "/model", "org/", "-a/b"])
def test_names_that_the_hub_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match=r"push='.*' is not a name on the hub: give ORG/NAME"):
        ExportConfig(push=name)


def test_a_push_needs_the_hub_and_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    check_push(ExportConfig())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"export\.push=someone/a-model: HF_HUB_OFFLINE"):
        check_push(SETTINGS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"nobody is logged in .* `hf auth login`"):
        check_push(SETTINGS)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    check_push(SETTINGS)


def test_the_folder_is_uploaded_to_a_private_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, name, **more: done.append((name, more)) or f"hub/{name}"
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **more: done.append(more))
    assert push(tmp_path, SETTINGS) == "hub/someone/a-model"
    assert done[0] == ("someone/a-model", {"private": True, "exist_ok": True})
    assert (done[1]["folder_path"], done[1]["repo_id"]) == (tmp_path, "someone/a-model")


def test_a_push_that_fails_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ExportError, match=r"failed: no route; .* `hf upload someone/a-model"):
        push(tmp_path, SETTINGS)
