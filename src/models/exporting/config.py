"""Settings of what is made of a run's final model, the key `export`."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The model card, by the name that the hub shows.
CARD = "README.md"


@dataclass(frozen=True)
class ExportConfig:
    """What is made of the final model besides the folder `export/`.

    Attributes:
        gguf: also write it as GGUF files, for llama.cpp: matrices in f16, and in q8_0.
        push: a model repository of the Hugging Face hub, as ORG/NAME, that the folder is uploaded
            to when the run has been evaluated; it is made if it does not exist.
        private: whether a repository that is made is private.
    """

    gguf: bool = False
    push: str | None = None
    private: bool = True

    def __post_init__(self) -> None:
        name = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
        if self.push is not None and not re.fullmatch(f"{name}/{name}", self.push):
            raise ValueError(
                f"push={self.push!r} is not a name on the hub: give ORG/NAME, of letters, digits, "
                "dots, dashes and underscores, or null"
            )
