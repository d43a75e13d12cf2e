"""How commands fail: a user's mistake ends in one message, a fault of the code in its traceback."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from src.assets.pins import AssetError
from src.settings import strict
from src.training.launch import LaunchError
from src.training.signals import Stopped

USAGE_ERROR = 2
FAILURE = 1
INTERRUPTED = 130

_Settings = TypeVar("_Settings")


def job(work: Callable[[_Settings], None]) -> Callable[[_Settings], None]:
    """Let a user's mistake in a job end it here, before Hydra reports it in other words."""

    @functools.wraps(work)
    def guarded(settings: _Settings) -> None:
        try:
            work(settings)
        except (ValueError, AssetError) as error:
            if not _is_users(error):
                raise
            _exit(str(error), USAGE_ERROR)
        except LaunchError as error:
            _exit(str(error), FAILURE)
        except Stopped as stopped:
            _exit(str(stopped), stopped.code)
        except KeyboardInterrupt:
            _exit("interrupted", INTERRUPTED)

    return guarded


def run(app: Callable[[], None], boundary: type) -> None:
    """Run a Hydra app and exit.

    Hydra's own handler is bypassed: it hides tracebacks, and for an unknown key it does not list
    the known ones.

    Args:
        app: the decorated Hydra function.
        boundary: the config dataclass, for naming allowed keys.
    """
    # The deepspeed launcher adds this option; the environment holds the same number.
    sys.argv = [a for a in sys.argv if not a.startswith("--local_rank")]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        _exit(explain_hydra(error, boundary), USAGE_ERROR)


def _is_users(error: Exception) -> bool:
    """Whether an error is a user's mistake: an instance of our own error classes.

    A bare ValueError is a fault and keeps its traceback.
    """
    return isinstance(error, AssetError) or type(error).__module__.split(".")[0] == "src"


def _exit(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def explain_hydra(error: Exception, boundary: type) -> str:
    """The message of a refusal by Hydra or OmegaConf, with the allowed keys."""
    message = str(error)
    refused = re.search(r"Could not override '([^']+)'", message)
    if not refused:
        return message.partition("Config search path:")[0].strip()
    parent, _, key = refused.group(1).lstrip("+").rpartition(".")
    allowed = strict.keys_at(boundary, parent.split(".") if parent else [])
    if not allowed or key in allowed:
        return message.strip()
    return f"{refused.group(1)}: {strict.unknown_key(key, allowed)}"
