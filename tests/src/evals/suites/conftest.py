"""Three models of random weights that suites evaluate: native, scaled and trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.data.config import DataConfig, TextFiles
from src.evals.cache import ResultCache
from src.evals.ruler.loading import MaterialConfig
from src.evals.suite import Candidate, Evaluation
from src.models.loading import load_model
from src.models.rope import LinearScaling

NATIVE, SCALED = 1024, 2048


@pytest.fixture
def evaluation(
    compose_run: Callable[..., Any],
    prose: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Evaluation:
    monkeypatch.setenv("LINEARARD_CACHE", str(tmp_path / "cache"))
    own = compose_run("+experiment=quickstart", "model=tiny")
    model = replace(own.model, native_window=NATIVE)
    scaling = LinearScaling("linear", SCALED)
    trained = replace(model, weights_seed=3)
    return Evaluation(
        candidates=(
            Candidate("native", "native", model),
            Candidate("scaled", "scaled", model, scaling),
            Candidate("after ard", "final", trained, scaling),
        ),
        data=DataConfig("prose", {"files": TextFiles("files", (str(prose),))}, ("held-*",)),
        device="cpu",
        dtype="float32",
        cache=ResultCache(tmp_path / "results"),
    )


@pytest.fixture
def diverge(tmp_path: Path) -> Callable[[Candidate], Candidate]:
    """A candidate as it is when all of its weights have become NaN."""

    def diverged(candidate: Candidate) -> Candidate:
        network = load_model(candidate.model, candidate.config(), dtype=torch.float32)
        for parameter in network.parameters():
            parameter.data.fill_(float("nan"))
        network.save_pretrained(tmp_path / "diverged")
        return replace(candidate, weights=tmp_path / "diverged")

    return diverged


@pytest.fixture(scope="session")
def material_config(tmp_path_factory: pytest.TempPathFactory, material: Any) -> MaterialConfig:
    folder = tmp_path_factory.mktemp("material")
    (folder / "story.txt").write_text(" ".join(material.sentences), encoding="utf-8")
    for file, words in (
        ("adjectivelist.txt", material.adjectives),
        ("nounlist.txt", material.nouns),
        ("verblist.txt", material.verbs),
    ):
        (folder / file).write_text("\n".join(words), encoding="utf-8")
    known = material.questions["squad"]
    articles = [
        {
            "title": f"Towns {i}",
            "paragraphs": [
                {
                    "context": known.documents[n],
                    "qas": [
                        {"question": q.text, "answers": [{"text": t} for t in q.answers]}
                        for q in known.questions
                        if q.document == n
                    ],
                }
                for n in range(4 * i, 4 * i + 4)
            ],
        }
        for i in range(30)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    return MaterialConfig(
        prose=TextFiles("files", (str(folder / "story.txt"),)),
        words=str(folder),
        squad=str(folder / "squad.json"),
    )
