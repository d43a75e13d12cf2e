"""A student that starts from somebody's long model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.models.config import FolderWeights, HubWeights, ModelConfig, ModelError
from src.models.hf_config import scaled_config
from src.models.loading import check_student, load_model
from src.models.rope import LinearScaling
from src.models.student import StudentConfig
from src.planning import plan
from src.settings.strict import ConfigError
from tests.src.models.examples import BYTES, ComposeRun

LONG = LinearScaling("linear", 32_768)


def long_model(folder: Path, model: ModelConfig) -> None:
    """A model of the tiny one's kind, extended by somebody else."""
    other = replace(model, weights_seed=9)
    network = load_model(other, scaled_config(other, LONG), dtype=torch.float32)
    network.save_pretrained(folder)
    BYTES.save_pretrained(folder)


def test_the_student_keeps_the_rope_of_its_checkpoint(
    tiny: ModelConfig, tmp_path: Path, compose_run: ComposeRun
) -> None:
    long_model(tmp_path, tiny)
    run = compose_run("model=tiny", "+experiment=linearard_32k", f"student.weights={tmp_path}")
    assert (run.rope.type, run.rope.target_length) == ("own", 32_768)
    check_student(run.model, run.student)
    ours, theirs = scaled_config(tiny, run.rope), scaled_config(tiny, LONG)
    assert ours.to_dict() == theirs.to_dict()
    plan.make(run, world_size=1)
    shared = replace(run.engine, teacher=replace(run.engine.teacher, share_base=True))
    with pytest.raises(ConfigError, match=r"share_base: true, but student\.weights="):
        plan.make(replace(run, engine=shared), world_size=1)
    with pytest.raises(ConfigError, match=r"rope=own is .*: give student\.weights=DIR"):
        compose_run("model=tiny", "rope=own")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 64}, r"hidden \(64, the teacher 32\)"),
        ({"heads": 2}, r"heads \(2, the teacher 4\)"),
        ({"layers": 3}, r"layers \(3, the teacher 2\)"),
        ({"vocabulary": 280}, r"vocabulary \(280, the teacher 272\)"),
    ],
    ids=["width", "heads", "layers", "vocabulary"],
)
def test_a_checkpoint_of_another_kind_is_refused_with_what_differs(
    tiny: ModelConfig, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    assert tiny.shape is not None
    long_model(tmp_path, replace(tiny, shape=replace(tiny.shape, **change)))
    with pytest.raises(ModelError, match=rf"student\.weights=.* differs .* in .*{message}"):
        check_student(tiny, StudentConfig(str(tmp_path)))


def test_another_tokenizer_is_refused(tiny: ModelConfig, tmp_path: Path) -> None:
    long_model(tmp_path, tiny)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|the end|>"))
    with pytest.raises(ModelError, match="in the tokenizer: give a checkpoint that was made"):
        check_student(tiny, StudentConfig(str(tmp_path)))


def test_a_run_starts_from_it(
    tiny: ModelConfig, tmp_path: Path, train_fake: Callable[..., Path]
) -> None:
    long_model(tmp_path, tiny)
    folder = train_fake(f"student.weights={tmp_path}")
    assert (folder / "export" / "config.json").is_file()


def test_a_folder_wins_over_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StudentConfig("org/name").source == HubWeights("hub", "org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert StudentConfig("org/name").source == FolderWeights("folder", "org/name")
    assert StudentConfig().folder is None
