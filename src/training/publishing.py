"""Upload of an export to the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from src.models.exporting.config import ExportConfig
from src.models.exporting.whole import ExportError
from src.settings.strict import ConfigError


def check_push(settings: ExportConfig) -> None:
    """Refuse a push that cannot work, before a run starts. The token itself is never shown.

    Raises:
        ConfigError: nobody is logged in, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token

    if settings.push is None:
        return
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"export.push={settings.push}: HF_HUB_OFFLINE is set, so nothing can be uploaded; "
            "unset it, or leave export.push out"
        )
    if get_token() is None:
        raise ConfigError(
            f"export.push={settings.push}: nobody is logged in to the hub; log in with "
            "`hf auth login` (or set HF_TOKEN), or leave export.push out"
        )


def push(folder: Path, settings: ExportConfig) -> str:
    """Upload an export; returns its address.

    Raises:
        ExportError: the hub refuses it or cannot be reached. The folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    assert settings.push is not None
    api = HfApi()
    try:
        made = api.create_repo(settings.push, private=settings.private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=settings.push,
            commit_message=f"Upload of {os.path.basename(folder)}",
        )
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"export.push={settings.push} failed: {reason}; the model is in {folder}: upload it "
            f"with `hf upload {settings.push} {folder}`"
        ) from error
    return str(made)
