"""Scores while a stage trains: they are those of the student, and leave its training alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from src.data.documents import DataError
from src.models.byte_tokenizer import byte_tokenizer
from src.planning import plan
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training import texts
from src.training.interim import Interim
from tests.conftest import losses


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(train_tiny: Callable[..., Path]) -> Path:
    return train_tiny("eval.every_steps=3")


def test_it_is_logged_at_every_so_many_steps_of_all_stages(watched: Path) -> None:
    logged = [line["step"] for line in lines(watched) if "eval/held_out/perplexity" in line]
    assert logged == [3, 6]


def test_the_last_figures_are_those_of_the_export(
    watched: Path, compose_run: Callable[..., RunConfig], tiny_overrides: list[str]
) -> None:
    run = compose_run(*tiny_overrides, "eval.every_steps=3")
    asked = Interim.of(run, "cpt", texts.prepare_data(run).corpus, torch.device("cpu"))
    assert len(asked.needles) == 8
    assert {len(ids) for ids in (*asked.windows, *(ids for ids, _ in asked.needles))} == {128}
    model = AutoModelForCausalLM.from_pretrained(watched / "export").eval()
    rows = torch.stack([torch.from_numpy(ids) for ids in asked.windows])
    with torch.no_grad():
        logits = model(rows).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    last = lines(watched)[-1]
    assert last["eval/held_out/loss"] == pytest.approx(expected, rel=1e-4)
    assert 0 <= last["eval/needles"] <= 1


def test_training_is_the_same_bits_with_and_without(
    watched: Path, train_tiny: Callable[..., Path]
) -> None:
    assert losses(watched) == losses(train_tiny())


SHARDED = ("engine.student.zero_stage=3", "engine.teacher.zero_stage=3")


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [1, 2])
def test_sharded_weights_give_the_same_figures(
    watched: Path, train_tiny: Callable[..., Path], ranks: int
) -> None:
    sharded = train_tiny("eval.every_steps=3", f"launch.nproc={ranks}", *SHARDED)
    for key in ("eval/held_out/loss", "eval/needles"):
        assert losses(sharded, key) == pytest.approx(losses(watched, key), rel=1e-3)


def test_a_needle_is_hidden_and_asked_for(
    compose_run: Callable[..., RunConfig], tiny_overrides: list[str]
) -> None:
    run = compose_run(*tiny_overrides, "eval.every_steps=3")
    asked = Interim.of(run, "cpt", texts.prepare_data(run).corpus, torch.device("cpu"))
    tokenizer = byte_tokenizer()
    for ids, answer in asked.needles:
        text = tokenizer.decode(ids)
        number = tokenizer.decode(ids[-answer:]).strip()
        assert len(number) == 5
        assert text.count(number) == 2
        assert text.removesuffix(f" {number}").endswith(" is")


def test_without_held_out_text_it_is_refused(
    train_fake: Callable[..., Path], compose_run: Callable[..., RunConfig]
) -> None:
    with pytest.raises(DataError, match=r"eval\.every_steps: 3 needs held-out text"):
        train_fake("eval.every_steps=3", "data.held_out=[]")
    shared = ("engine.sequence_parallel=2", "eval.every_steps=3")
    run = compose_run("+experiment=linearard_32k", *shared)
    with pytest.raises(ConfigError, match=r"eval\.every_steps: 3 needs whole blocks on a rank"):
        plan.make(run, world_size=2)
