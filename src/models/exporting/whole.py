"""The check that an export is whole: it loads, with all its weights, and computes numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TOKENS = 8


class ExportError(RuntimeError):
    """An export that is not a whole model, or that cannot be written or published."""


def check_whole(folder: Path) -> None:
    """Load an exported folder as its readers will, and compute a few logits.

    Raises:
        ExportError: a file cannot be read, a weight is missing, has another shape or is not finite,
            or the logits are not finite.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ExportError(f"the export {folder} cannot be loaded: {error}") from error
    network, report = loaded
    for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(map(str, report[fault])):
            raise ExportError(
                f"the export {folder} has {fault.replace('_', ' ')}: {', '.join(names[:3])}"
            )
    for name, weight in network.named_parameters():
        if not weight.isfinite().all():
            raise ExportError(_not_finite(f"weight {name}"))
    ids = torch.arange(min(_TOKENS, network.config.vocab_size))[None]
    with torch.no_grad():
        if not network(input_ids=ids).logits.isfinite().all():
            raise ExportError(_not_finite("its logits"))
    if len(tokenizer) == 0:
        raise ExportError(f"the export {folder} has a tokenizer without tokens")


def _not_finite(what: str) -> str:
    return (
        f"the trained model is no use: {what} holds numbers that are not finite, so nothing was "
        "exported; look where the loss left its course in metrics.jsonl, and train with a smaller "
        "learning rate or clip_norm"
    )
