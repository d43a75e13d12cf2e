"""A model that a user names by its folder or its repository: its settings follow from its config.

`model.path=DIR` or `model.repo=ORG/NAME` leaves the name, the family, the native window and the
tuning null. They are filled in here, before anything else reads the settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.models.config import FolderWeights, HubWeights, ModelError
from src.models.families import family_of_type

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Learning rates of distillation and of next tokens, below a width: those that the study found for
# SmolLM2-135M (width 576) and for Qwen2.5-Coder-0.5B (896), and above them the paper's.
_RATES = ((720, 1e-3, 1e-4), (2048, 2e-5, 3e-6), (math.inf, 2e-5, 2e-5))
_UNKNOWN_WIDTH = 2048
# The paper's rank.
_MOST_RANK = 1024


def completed(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model in a folder or on the hub, with what is null filled in.

    Args:
        model: plain settings of the group `model`, with the keys of `ModelConfig` and the shorthand
            `path` or `repo`.

    Raises:
        ModelError: the place is missing, or has no config that transformers reads.
    """
    settings = {key: value for key, value in model.items() if key not in ("path", "repo")}
    source, tuning = settings.get("source"), settings.get("tuning") or {}
    if not isinstance(source, Mapping) or not isinstance(tuning, Mapping):
        return settings  # refused with its key by src/settings/strict.py
    place = source.get("path") or source.get("repo")
    if place is None:
        key = "path=DIR" if source.get("type") == "folder" else "repo=ORG/NAME"
        raise ModelError(f"model.{key} is missing: say where the model is")
    settings["name"] = settings.get("name") or named(str(place))
    family, window = settings.get("family"), settings.get("native_window")
    if None not in (family, window, *tuning.values()):
        return settings
    # Loads transformers, which takes seconds.
    from src.models.sources import read_config

    if source.get("type") == "folder":
        config = read_config(FolderWeights("folder", str(place)))
    else:
        config = read_config(HubWeights("hub", str(place), source.get("revision")))
    if family is None:
        settings["family"] = family_of_type(config.model_type).name
    if window is None:
        settings["native_window"] = judged_window(config)[0]
    suggested = suggested_tuning(config)
    settings["tuning"] = suggested | {k: v for k, v in tuning.items() if v is not None}
    return settings


def named(place: str) -> str:
    """A model's name: the last part of its folder's or repository's name."""
    path = Path(place).expanduser()
    parts = [part for part in (path.absolute() if path.is_dir() else path).parts if part != "/"]
    if len(parts) > 2 and parts[-2] == "snapshots":
        # The hub's cache: models--ORG--NAME/snapshots/COMMIT.
        parts = [*parts[:-2], parts[-3].rpartition("--")[2]]
    return re.sub(r"[^\w.-]+", "_", parts[-1] if parts else "").strip("._") or "model"


def judged_window(config: PretrainedConfig) -> tuple[int, str]:
    """The native window that a config states, in tokens, and which of its keys says so.

    A config states the length that it allows. That is the length that the model was trained at for
    most models, and an overstatement for some (Mistral-7B-v0.1, Qwen2.5-7B).

    Raises:
        ModelError: it states none.
    """
    stated = getattr(config, "max_position_embeddings", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    original, factor = (
        parameters.get("original_max_position_embeddings"),
        parameters.get("factor"),
    )
    if original and factor and (stated is None or stated <= original):
        return int(original * factor), "original_max_position_embeddings times its factor"
    if not isinstance(stated, int) or stated < 1:
        raise ModelError(
            f"model.native_window: the config of this model of type {config.model_type!r} states "
            "no max_position_embeddings: give the length in tokens that it was trained at"
        )
    return stated, "max_position_embeddings"


def suggested_tuning(config: PretrainedConfig) -> dict[str, float]:
    """Learning rates and LoRA rank by width, as the listed models have them.

    The rank is half the width, rounded to a power of two, and at most the paper's 1024. Rates are
    those of the nearest model for which they were searched; one of them lost up to half of its
    retrieval at the other's.
    """
    hidden = getattr(config, "hidden_size", None) or _UNKNOWN_WIDTH
    rank = min(_MOST_RANK, max(1, 2 ** round(math.log2(hidden / 2))))
    distill, cpt = next(rates for below, *rates in _RATES if hidden < below)
    return {
        "distill_lr": distill,
        "cpt_lr": cpt,
        "lora_rank": rank,
        "lora_alpha": 2 * rank,
    }
