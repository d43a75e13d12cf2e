"""How commands fail: a user's mistake ends in one message, a fault of the code in its traceback."""

from __future__ import annotations

import difflib
import functools
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from src import environment
from src.assets.pins import AssetError
from src.settings import loading, strict
from src.settings.strict import ConfigError
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


def run(app: Callable[[], None], boundary: type, *, takes_overrides: bool = True) -> None:
    """Run a Hydra app and exit.

    Hydra's own handler is bypassed: it hides tracebacks, and for an unknown key it does not list
    the known ones.

    Args:
        boundary: the config dataclass, for naming allowed keys.
    """
    # The deepspeed launcher adds this option; the environment holds the same number.
    sys.argv = [a for a in sys.argv if not a.startswith("--local_rank")]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with environment.redacting_output():
        try:
            loading.refuse_broken_parts()
            if takes_overrides:
                check_arguments(sys.argv[1:], boundary)
            app()
            sys.stdout.flush()
        except BrokenPipeError:
            if not _has_no_reader(1):
                raise
            # `... --help | head`. Python would flush once more, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(128 + signal.SIGPIPE)
        except (HydraException, OmegaConfBaseException) as error:
            _exit(explain_hydra(error, boundary), USAGE_ERROR)
        except ConfigError as error:
            _exit(str(error), USAGE_ERROR)
        except loading.UNREADABLE as error:
            if (message := loading.explain_unreadable(error)) is None:
                raise
            _exit(message, USAGE_ERROR)


def _has_no_reader(descriptor: int) -> bool:
    """Whether a descriptor is a pipe whose other end is closed."""
    polled = select.poll()
    polled.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in polled.poll(0))


def _is_users(error: Exception) -> bool:
    """Whether an error is a user's mistake: an instance of our own error classes.

    A bare ValueError is a fault and keeps its traceback.
    """
    return isinstance(error, AssetError) or type(error).__module__.split(".")[0] == "src"


def _exit(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def check_arguments(arguments: Sequence[str], boundary: type) -> None:
    """Refuse what Hydra could not read, in words that say what to type.

    Raises:
        ConfigError: an argument is no option of Hydra's and no override.
    """
    names = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    if unknown := [name for name in names if name not in (*_OPTIONS, *_OPTIONS_WITH_WORDS)]:
        key = unknown[0].lstrip("-")
        sign = "+" if key in ("experiment", "sweeps") else ""
        raise ConfigError(
            f"{unknown[0]}: no such option; settings are written without dashes: {sign}{key}=VALUE "
            "(--help lists them)"
        )
    words = any(name in _OPTIONS_WITH_WORDS for name in names)
    for argument in arguments:
        if not argument.startswith("-") and not (words and "=" not in argument):
            _check_override(argument, boundary)


# Hydra's own options; those of the second line may have a word after them.
_OPTIONS = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-r", "--run")
_OPTIONS += ("-m", "--multirun", "-sc", "--shell-completion", "--experimental-rerun")
_OPTIONS_WITH_WORDS = ("-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-c")
_OPTIONS_WITH_WORDS += ("-cd", "--config-dir", "-i", "--info", "--cfg", "--experimental-rerun")
_CONF = Path(__file__).resolve().parents[1] / "conf"


def _check_override(argument: str, boundary: type) -> None:
    key, equal, value = argument.partition("=")
    name = key.lstrip("+~")
    if not equal and not key.startswith("~"):
        allowed = strict.keys_at(boundary, [])
        hint = "" if not name or name in allowed else f"; {strict.unknown_key(name, allowed)}"
        raise ConfigError(f"{argument!r}: no value is given; write {name or 'KEY'}=VALUE{hint}")
    if not name.strip():
        raise ConfigError(f"{argument!r}: no key is given; write KEY=VALUE")
    try:
        parsed = OverridesParser.create().parse_override(argument)
        chosen = None if key.startswith("~") or parsed.is_sweep_override() else parsed.value()
    except (HydraException, ValueError) as error:
        quoted = shlex.quote(key + '="' + value.replace('"', '\\"') + '"')
        raise ConfigError(
            f"{argument!r}: the value cannot be read; {_HYDRAS_SIGNS} are Hydra's own signs there: "
            f"quote the value, {quoted}"
        ) from error
    group = _CONF / name.partition("@")[0]
    names = [chosen] if isinstance(chosen, str) else chosen
    is_names = isinstance(names, list) and all(isinstance(n, str) and "$" not in n for n in names)
    if equal and group.is_dir() and not parsed.is_sweep_override() and not is_names:
        allowed = sorted(path.stem for path in group.glob("*.yaml"))
        raise ConfigError(f"{argument}: no such choice; allowed: {', '.join(allowed)}")


_HYDRAS_SIGNS = "= , : ( ) [ ] { } $ ' and \""


def explain_hydra(error: Exception, boundary: type) -> str:
    """The message of a refusal by Hydra or OmegaConf: key, value, what is allowed, remedy."""
    message = loading.hydra_message(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        asked = error.missing_cfg_file.split("/")
        depth = max(n for n in range(len(asked)) if _CONF.joinpath(*asked[:n]).is_dir())
        group, name = "/".join(asked[:depth]), "/".join(asked[depth:])
        near = difflib.get_close_matches(name, error.options or (), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        allowed = error.options or [path.stem for path in sorted((_CONF / group).glob("*.yaml"))]
        return f"{group}={name}: no such choice; {hint}allowed: {', '.join(allowed)}"
    if match := re.search(r"Could not override '([^']+)'", message):
        return _unknown(match.group(1).lstrip("+"), message, boundary)
    if match := re.search(r"Multiple values for (\S+?)\. ", message):
        key = match.group(1)
        return f"{key}: it is chosen twice; write {key}=NAME in place of +{key}=NAME, or only one"
    if match := re.search(r"Could not delete (?:from config\. )?'([^']*)'", message):
        return f"~{match.group(1)}: there is nothing of this name to leave out"
    if match := re.search(r"(?:argument|parameters) '(.+?)'(?: requires|$)", message, re.M):
        return (
            f"{match.group(1)}: several values make a sweep: add -m for one; a list is written "
            "KEY=[A,B], and a text with commas in quotes"
        )
    lines = [line.strip() for line in message.splitlines() if "https://" not in line]
    return " ".join(line for line in lines if line)


def _unknown(path: str, message: str, boundary: type) -> str:
    """What is wrong with a key that Hydra cannot override."""
    if path in ("experiment", "sweeps"):
        return f"{path}: write +{path}=NAME, with a plus"
    if near := re.search(r"Did you mean to override (\S+)\?", message):
        return f"{path}: the chosen settings have no such key; did you mean {near.group(1)}?"
    if (_CONF / path.partition("@")[0]).is_dir():
        return f"{path}: a group that is chosen elsewhere; write {path}@KEY=NAME with its place"
    parts = path.split(".")
    for depth, part in enumerate(parts):
        allowed = strict.keys_at(boundary, parts[:depth])
        if allowed and part not in allowed:
            return f"{path}: {strict.unknown_key(part, allowed)}"
    return f"{path}: the chosen settings have no such key; a new one is written +{path}=VALUE"
