"""Damaged inputs: each is used, made again, or refused in words, soon, and leaves nothing behind.

Texts, model folders, caches and run folders are damaged with a fixed seed, one file at a time.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.data.config import DataConfig
from src.data.preparation import prepare_corpus
from src.evals import running
from src.evals.cache import ResultCache
from src.evals.ruler import loading as ruler_loading
from src.evals.ruler.loading import MaterialConfig
from src.evals.ruler.store import SampleStore
from src.models.byte_tokenizer import byte_tokenizer
from src.models.hf_config import native_config
from src.models.loading import load_model, load_tokenizer
from src.models.sources import check_available, identity
from src.planning import plan
from src.report.groups import group_runs
from src.report.runs import read_runs
from src.report.runs_table import runs_table
from src.run_folder import RunFolder
from src.settings import loading, strict
from src.settings.config import RunConfig
from src.training import checkpoint
from tests.answered import Answers
from tests.damage import copied, damage
from tests.src.data.conftest import make_tokenizer

Case = Callable[[random.Random, Path], str]


def try_cases(case: Case, number: int, folder: Path, seed: int = 20) -> Counter[str]:
    """Try `number` cases; fails with all that ended in a traceback."""
    draw, answers = random.Random(seed), Answers()
    for _ in range(number):
        answers.ask(lambda: case(draw, folder), lambda: LAST[-1])
    answers.check()
    return answers.counts


LAST = [""]


def damaged(draw: random.Random, folder: Path, files: list[Path] | None = None) -> Path:
    """Damage a file of a folder; `LAST` says how."""
    found = files or sorted(file for file in folder.rglob("*") if file.is_file())
    file = draw.choice(found)
    LAST.append(damage(draw, file))
    return file


def thorough(number: int) -> Any:
    return pytest.param(number, marks=[pytest.mark.thorough, pytest.mark.slow])


# Texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("texts")
    for name in ("a.txt", "held.md"):
        (folder / name).write_text(f"Words of {name}, \u00e9 and more. " * 12, encoding="utf-8")
    rows = [{"text": f"Row {n} of the file. " * 8, "n": n} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = [{"messages": [{"role": "user", "content": "Hello there. " * 4}]} for _ in range(4)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "chats.jsonl").write_text("".join(json.dumps(row | rows[0]) + "\n" for row in chats))
    return folder


@pytest.mark.parametrize("number", [15, thorough(250)])
def test_damaged_texts(texts: Path, tmp_path: Path, number: int) -> None:
    cache, tokenizer = tmp_path / "cache", make_tokenizer()

    def case(draw: random.Random, folder: Path) -> str:
        here = copied(texts, folder / "texts")
        damaged(draw, here)
        plain = {
            "name": "damaged",
            "sources": {"files": {"type": "files", "paths": [str(here)]}},
            "held_out": ["held*"],
        }
        corpus = prepare_corpus(strict.load_plain(DataConfig, plain), tokenizer, cache=cache)
        corpus.blocks(64, seed=1)[0]
        return "used"

    outcomes = try_cases(case, number, tmp_path)
    assert outcomes["refused"] > number / 4
    assert not list(cache.rglob("new-*"))


# Model folders


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same small model in one file, and in several with an index."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=1024)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    folders = [tmp_path_factory.mktemp(name) for name in ("single", "sharded")]
    network.save_pretrained(folders[0])
    network.save_pretrained(folders[1], max_shard_size="40KB")
    for folder in folders:
        byte_tokenizer().save_pretrained(folder)
    return folders


@pytest.mark.parametrize("number", [15, thorough(250)])
def test_damaged_model_folders(models: list[Path], tmp_path: Path, number: int) -> None:
    here = tmp_path / "model"
    typed = [f"model.path={here}", "+experiment=linearard_32k", "budget=1M", "engine=cpu"]
    composed = loading.Composer("train")(typed)

    def case(draw: random.Random, folder: Path) -> str:
        copied(draw.choice(models), here)
        damaged(draw, here)
        settings = loading.load(RunConfig, copy.deepcopy(composed))
        plan.make(settings, world_size=1)
        identity(settings.model)
        check_available(settings.model)
        load_tokenizer(settings.model)("abc")
        network = load_model(settings.model, native_config(settings.model), dtype=torch.float32)
        with torch.no_grad():
            network(torch.tensor([[1, 2, 3]]))
        return "used"

    outcomes = try_cases(case, number, tmp_path)
    assert outcomes["refused"] > number / 4


# Caches


@pytest.mark.parametrize("number", [15, thorough(250)])
def test_damaged_caches(
    texts: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out of a damaged cache is what came out of the whole one."""
    tokenizer, cache = make_tokenizer(), tmp_path / "cache"
    monkeypatch.setattr(ruler_loading, "part", lambda config, name: ())
    plain = {
        "name": "texts",
        "sources": {"files": {"type": "files", "paths": [str(texts)]}},
        "held_out": ["held*"],
    }
    config = strict.load_plain(DataConfig, plain)

    def outputs(place: Path) -> Any:
        corpus = prepare_corpus(config, tokenizer, cache=place)
        results = ResultCache(place / "evals")
        if results.get({"task": "a"}) is None:
            results.put({"task": "a"}, {"scores": [1.0, 2.0]})
        samples = SampleStore(tokenizer, MaterialConfig(), 1, place / "ruler").samples(
            "vt", 2048, 2
        )
        return corpus.tokens.tolist(), corpus.documents, results.get({"task": "a"}), samples

    whole = outputs(cache)

    def case(draw: random.Random, folder: Path) -> str:
        here = copied(cache, folder / "damaged")
        damaged(
            draw, here, [f for f in sorted(here.rglob("*")) if f.is_file() and f.suffix != ".lock"]
        )
        assert outputs(here) == whole, LAST[-1]
        return "whole"

    outcomes = try_cases(case, number, tmp_path)
    assert outcomes["whole"] > number / 2


# Run folders


@pytest.mark.parametrize("number", [15, thorough(250)])
def test_damaged_run_folders(train_fake: Callable[..., Path], tmp_path: Path, number: int) -> None:
    """What the commands do with a run before they load a model."""
    from tests.src.report import synthetic

    trained = train_fake()
    synthetic.write(tmp_path / "outputs", 6, faulty=False)
    source = sorted((tmp_path / "outputs").rglob("run.json"))[0].parent
    for file in source.glob("evals/*"):
        (trained / "evals").mkdir(exist_ok=True)
        (trained / "evals" / file.name).write_bytes(file.read_bytes())

    def case(draw: random.Random, folder: Path) -> str:
        here = copied(trained, folder / "runs" / "run")
        small = [f for f in sorted(here.rglob("*")) if f.is_file() and f.name != ".lock"]
        records = [f for f in small if f.parent in (here, here / "evals")]
        damaged(draw, here, draw.choice([records, records, small]))
        runs = read_runs(folder / "runs")
        runs_table(runs, None)
        group_runs(runs)
        run = RunFolder(here)
        checkpoint.restore_records(run)
        checkpoint.verified(run)
        opened = RunFolder.open(here)
        strict.load_plain(RunConfig, opened.config())
        opened.metrics()
        running._exported(here, "run")
        return "used"

    outcomes = try_cases(case, number, tmp_path)
    assert outcomes["used"] > number / 2  # from the checkpoint's copies
