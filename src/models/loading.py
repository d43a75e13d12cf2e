"""Loading of models and tokenizers.

Teacher and student are loaded from the same weights; they differ in what their config says of RoPE.
Only safetensors are read, and no remote code is run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.models import inspection
from src.models.byte_tokenizer import byte_tokenizer
from src.models.checks import check_weights
from src.models.config import ModelConfig, ModelError
from src.models.families import FAMILIES
from src.models.hf_config import native_config, resolved_shape
from src.models.shapes import ropes_of
from src.models.sources import in_words, label_of, local_folder, location, read_config, reported
from src.models.student import StudentConfig, differences

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from src.models.assembly import Sharding


def load_model(
    model: ModelConfig,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    weights: Path | None = None,
    capture: bool = False,
    random_on: torch.device | None = None,
    sharding: Sharding | None = None,
) -> PreTrainedModel:
    """Load the weights under a given config.

    Args:
        config: native_config(model) for a teacher, scaled_config(model, ...) for a student.
        weights: a folder to take the weights from instead of the model's source (an earlier
            stage's export, with the same architecture).
        capture: run attention through src.passes.capture, so that q, k and v can be recorded.
        random_on: where random weights are drawn. The CPU, the default, gives every device and
            rank the same weights. A GPU gives others, but in seconds for a model of billions.
        sharding: takes each weight when it is read, so that no process holds the whole model
            (ZeRO-3). A model of an unlisted family is loaded whole: its files may arrange weights
            in another way, which transformers converts for the whole model at once.

    Returns:
        A causal language model in evaluation mode, on the CPU (or on `random_on`).

    Raises:
        ModelError: its files cannot be fetched, are damaged, or lack weights or have other shapes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from src.passes.capture import attention_name

    if not sys.stderr.isatty():
        # Its progress bars would fill a log file with control characters.
        transformers_logging.disable_progress_bar()
    settings = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": attention_name(model.attention) if capture else model.attention,
    }
    make = partial(AutoModelForCausalLM.from_config, trust_remote_code=False, **settings)
    if weights is None and model.random_weights:
        network = _drawn(model, make, random_on, sharding)
    elif sharding is not None and model.family in FAMILIES:
        network = _read_by_weight(model, make, weights, dtype, sharding)
    else:
        network = _read_whole(model, weights, settings)
    return _of_length_alone(network.eval())


def _drawn(
    model: ModelConfig,
    make: Callable[[], PreTrainedModel],
    device: torch.device | None,
    sharding: Sharding | None,
) -> PreTrainedModel:
    """A model whose weights are drawn from its seed."""
    import torch

    from src.models.assembly import drawing

    by_weight = nullcontext() if sharding is None else drawing(sharding)
    with torch.random.fork_rng(devices=[]), torch.device(device or "cpu"), by_weight:
        torch.manual_seed(model.weights_seed)
        return make()


def _read_by_weight(
    model: ModelConfig,
    make: Callable[[], PreTrainedModel],
    weights: Path | None,
    dtype: torch.dtype,
    sharding: Sharding,
) -> PreTrainedModel:
    """A model whose weights are read one by one and handed to `sharding`."""
    import torch

    from src.models import assembly

    try:
        with torch.random.fork_rng(devices=[]):
            return assembly.read(make, weights or local_folder(model.source), dtype, sharding)
    except assembly.WeightsError as error:
        raise ModelError(f"model {model.name} cannot be loaded: {error}") from error


def _read_whole(
    model: ModelConfig, weights: Path | None, settings: Mapping[str, Any]
) -> PreTrainedModel:
    """A model read by transformers, all of its weights at once."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"local_files_only": True}
    place = str(weights)
    if weights is None:
        place, options = location(model.source)
    with reported(model.source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            trust_remote_code=False,
            use_safetensors=True,
            # Weights that do not fit are then listed, and refused below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
            **options,
        )
    network, report = loaded
    check_weights(model, place, report)
    return network


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerFast:
    """The model's own tokenizer, or the byte tokenizer for random weights.

    Raises:
        ModelError: its files cannot be fetched or read.
    """
    from transformers import AutoTokenizer

    if model.random_weights:
        return byte_tokenizer()
    place, options = location(model.source)
    with reported(model.source):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
            tokenizer("a")
        except OSError:
            raise
        except Exception as error:  # the library `tokenizers` raises this class itself
            raise ModelError(
                f"{label_of(model.source)}: its tokenizer cannot be used "
                f"({in_words(error)}): copy or download its files again"
            ) from error
    return tokenizer


def check_ids(model: ModelConfig, largest: int) -> None:
    """Refuse texts whose token ids the model's embedding does not have.

    A tokenizer may be larger than the embedding: what counts are the ids that occur.

    Raises:
        ModelError: the id is beyond the embedding.
    """
    if largest < (rows := resolved_shape(model).vocabulary):
        return
    token = load_tokenizer(model).convert_ids_to_tokens(largest)
    raise ModelError(
        f"data: token id {largest} ({token!r}) occurs in the texts, and model {model.name} has "
        f"embeddings for ids up to {rows - 1}: give the tokenizer that belongs to the model, or "
        "resize its embeddings (resize_token_embeddings) and save it"
    )


def check_student(model: ModelConfig, student: StudentConfig) -> None:
    """Refuse a student's checkpoint that is not of the teacher's kind, with what differs.

    Raises:
        ModelError: sizes, the tokenizer or the type differ, or the folder is not a whole model.
    """
    folder = student.folder
    if folder is None:
        return
    label = f"student.weights={student.weights}"
    inspection.check_folder(folder, label)
    theirs = read_config(student.source)
    differing = differences(native_config(model), theirs)
    mine = ModelConfig(
        "student", model.family, model.native_window, model.tuning, source=student.source
    )
    tokenizers = {load_tokenizer(each).backend_tokenizer.to_str() for each in (model, mine)}
    if len(tokenizers) > 1:
        differing.append("the tokenizer")
    if differing:
        raise ModelError(
            f"{label} differs from its teacher, {model.name}, in {'; '.join(differing)}: give a "
            "checkpoint that was made from that model"
        )
    inspection.check_weights(folder, theirs, label)


def _of_length_alone(network: PreTrainedModel) -> PreTrainedModel:
    """Let dynamic RoPE depend on the length of each sequence alone.

    transformers keeps the frequencies of the longest sequence so far, until one comes that is
    shorter than the native window. So a resumed run would differ from an undisturbed one.
    """
    decoder: Any = network.get_decoder()
    rotary: Any = getattr(decoder, "rotary_emb", None)
    ropes = ropes_of(network.config).items()
    dynamic = [kind and f"{kind}_" for kind, rope in ropes if rope["rope_type"] == "dynamic"]

    def forget(module: Any, args: Any) -> None:
        for prefix in dynamic:
            native = getattr(module, f"{prefix}original_inv_freq")
            setattr(module, f"{prefix}inv_freq", native.to(getattr(module, f"{prefix}inv_freq")))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    if dynamic:
        rotary.register_forward_pre_hook(forget)
    return network
