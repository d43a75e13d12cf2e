"""Export a stage's model: a folder that transformers, vLLM and their like load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.manifest import seal_folder
from src.models.adapters import AnyParameters, load_trained, make_trainable, merged
from src.models.exporting.config import CARD
from src.models.exporting.gguf import QUANTIZATIONS, gguf_name, write_gguf
from src.models.exporting.gguf_vocabulary import vocabulary_of
from src.models.exporting.legacy import add_legacy_keys
from src.models.exporting.whole import check_whole
from src.models.hf_config import native_config, resolved_shape, scaled_config, served_length
from src.models.loading import load_model, load_tokenizer
from src.models.merging import MergeConfig, merge_into
from src.run_folder import sync_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from src.models.config import ModelConfig, ModelShape
    from src.models.rope import RopeScaling

# Weights that make one more thread of an export worthwhile.
_THREAD_WEIGHTS = 500_000_000


def export(
    target: Path,
    trained: Mapping[str, Tensor],
    *,
    model: ModelConfig,
    scaling: RopeScaling,
    parameters: AnyParameters,
    weights: Path | None,
    dtype: torch.dtype,
    seed: int,
    card: str,
    gguf: bool = False,
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads; rank 0 only.

    The model is built again in float32 from the weights that the stage began with. It takes the
    trained parameters, its adapters are merged, and it is stored in `dtype`, so that merging rounds
    once.

    Args:
        target: the folder to write.
        trained: unsharded trained parameters by name, from `Student.trained_parameters`.
        model: the model that was trained.
        scaling: its RoPE scaling, written into the exported config.
        parameters: which of its parameters were trained.
        weights: the folder that the stage began with; None for the model's source.
        dtype: of the stored weights.
        seed: the run's seed.
        card: text of the model card.
        gguf: whether the folder gets GGUF files too.

    Raises:
        ExportError: the written folder is not a whole model; it is removed.
    """
    config = scaled_config(model, scaling)
    with _few_threads(model):
        network = load_model(model, config, dtype=torch.float32, weights=weights)
        trainable = make_trainable(network, parameters, seed=seed)
        load_trained(trainable, trained)
        whole = merged(trainable)
        write_model(target, whole, model=model, scaling=scaling, dtype=dtype, card=card, gguf=gguf)


def merge(
    target: Path,
    weights: Path,
    asked: MergeConfig,
    *,
    model: ModelConfig,
    scaling: RopeScaling,
    dtype: torch.dtype,
    card: str,
    gguf: bool = False,
) -> None:
    """Write the merge of an earlier export with the native model; rank 0 only.

    Both models are in memory, in float32, so that merging rounds once.

    Args:
        target: the folder to write.
        weights: the export to merge with the native model.
        asked: the shares of both.
        model, scaling, dtype, card, gguf: as for `export`.

    Raises:
        ExportError: as `export`.
    """
    load = partial(load_model, model, dtype=torch.float32)
    with _few_threads(model):
        network = load(scaled_config(model, scaling), weights=weights)
        merge_into(network, load(native_config(model)), asked)
        write_model(
            target, network, model=model, scaling=scaling, dtype=dtype, card=card, gguf=gguf
        )


def write_model(
    target: Path,
    network: PreTrainedModel,
    *,
    model: ModelConfig,
    scaling: RopeScaling,
    dtype: torch.dtype,
    card: str,
    gguf: bool = False,
) -> None:
    """Store a model with its tokenizer and card, and check that the folder is a whole model.

    Args as for `export`; `network` is the model to store.
    """
    network = network.to(dtype)  # type: ignore[arg-type]  # transformers narrows nn.Module.to
    if (length := served_length(model, scaling)) is not None:
        network.config.max_seq_len = length
    tokenizer = load_tokenizer(model)
    tokenizer.model_max_length = scaling.target_length
    with _replacing(target) as partial:
        network.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        add_legacy_keys(partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        check_whole(partial)
        for quantization in QUANTIZATIONS if gguf else ():
            write_gguf(
                partial,
                partial / gguf_name(model, quantization),
                model=model,
                shape=resolved_shape(model),
                scaling=scaling,
                quantization=quantization,
            )
        seal_folder(partial)


def check_tokenizer(model: ModelConfig, shape: ModelShape) -> None:
    """Refuse a model whose tokenizer a GGUF file cannot hold.

    Raises:
        ModelError: it cannot, with the reason.
    """
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
        load_tokenizer(model).save_pretrained(folder)
        vocabulary_of(Path(folder), shape.vocabulary)


@contextmanager
def _few_threads(model: ModelConfig) -> Iterator[None]:
    """Inside the block torch has a thread for each `_THREAD_WEIGHTS`, and no more than before.

    One thread exports a small model in two seconds. Several wait for each other at every weight, as
    long as it takes until all have a core: a minute where other runs keep the cores busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 1 + resolved_shape(model).parameters // _THREAD_WEIGHTS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place in the end, or is removed on an error."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
