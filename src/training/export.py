"""Export a stage's model: a folder that transformers, vLLM and their like load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Export:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads; rank 0 writes it.

    Models are put together in float32 and stored in `dtype`, so that merging rounds once.

    Attributes:
        scaling: its RoPE scaling, written into the exported config.
        dtype: of the stored weights.
        gguf: whether the folder gets GGUF files too.
    """

    target: Path
    model: ModelConfig
    scaling: RopeScaling
    dtype: torch.dtype
    card: str
    gguf: bool = False

    def write_trained(
        self,
        trained: Mapping[str, Tensor],
        parameters: AnyParameters,
        *,
        weights: Path | None,
        seed: int,
    ) -> None:
        """Write the model that a stage has trained, with its adapters merged.

        Args:
            trained: unsharded trained parameters by name, from `Student.trained_parameters`.
            parameters: which parameters were trained.
            weights: the folder that the stage began with; None for the model's source.

        Raises:
            ExportError: the written folder is not a whole model; it is removed.
        """
        config = scaled_config(self.model, self.scaling)
        with _few_threads(self.model):
            network = load_model(self.model, config, dtype=torch.float32, weights=weights)
            trainable = make_trainable(network, parameters, seed=seed)
            load_trained(trainable, trained)
            self.write(merged(trainable))

    def write_merged(self, weights: Path, asked: MergeConfig) -> None:
        """Write the merge of the earlier export `weights` with the native model.

        Raises:
            ExportError: as `write_trained`.
        """
        load = partial(load_model, self.model, dtype=torch.float32)
        with _few_threads(self.model):
            network = load(scaled_config(self.model, self.scaling), weights=weights)
            merge_into(network, load(native_config(self.model)), asked)
            self.write(network)

    def write(self, network: PreTrainedModel) -> None:
        """Store a model with its tokenizer and card, and check that the folder is a whole model."""
        network = network.to(self.dtype)  # type: ignore[arg-type]  # transformers narrows nn.Module.to
        model, scaling = self.model, self.scaling
        if (length := served_length(model, scaling)) is not None:
            network.config.max_seq_len = length
        tokenizer = load_tokenizer(model)
        tokenizer.model_max_length = scaling.target_length
        with _replacing(self.target) as partial:
            network.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            add_legacy_keys(partial)
            (partial / CARD).write_text(self.card, encoding="utf-8")
            check_whole(partial)
            for quantization in QUANTIZATIONS if self.gguf else ():
                name = gguf_name(model, quantization)
                write_gguf(
                    partial, partial / name, model=model, scaling=scaling, quantization=quantization
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
