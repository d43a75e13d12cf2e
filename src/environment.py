"""Keeps values of environment variables, which settings may refer to, out of what is written.

`${oc.env:NAME}` in a setting is replaced by the variable's value when a command reads it. What is
written or printed has the interpolation in place of the value, so secrets and private paths stay in
the environment. A run that goes on asks the environment again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import IO, Any

# Shorter values, such as a number of GPUs, are no secrets, and occur in words.
SHORTEST = 4
# Shorter ones are replaced where they stand alone.
_SHORT = 8
_INTERPOLATION = re.compile(r"\$\{oc\.env:([^{},]+)\}")
_written: dict[str, str] = {}


class MissingVariableError(ValueError):
    """A setting refers to an environment variable that is not set."""


def interpolation(name: str) -> str:
    """What is written in place of a variable's value."""
    return f"${{oc.env:{name}}}"


def hide(text: str, written: str) -> None:
    """Have `written` in place of `text` in all that this process writes from now on."""
    if len(text) >= SHORTEST and _written.get(text) != written:
        _written[text] = written
        _pattern.cache_clear()


@functools.cache
def _pattern() -> re.Pattern[str]:
    def found(text: str) -> str:
        alone = len(text) < _SHORT
        return rf"(?<!\w){re.escape(text)}(?!\w)" if alone else re.escape(text)

    return re.compile("|".join(map(found, sorted(_written, key=len, reverse=True))))


def redacted(text: str) -> str:
    """The text with interpolations in place of variables' values."""
    if not _written:
        return text
    return _pattern().sub(lambda match: _written[match.group()], text)


def all_redacted(value: Any) -> Any:
    """Containers with `redacted` texts."""
    return _mapped(value, lambda text, _: redacted(text)) if _written else value


def variables(value: Any) -> set[str]:
    """Names of the variables that texts in containers refer to."""
    return set(_INTERPOLATION.findall(json.dumps(value, ensure_ascii=False, default=str)))


def resolved(value: Any) -> Any:
    """Containers with variables' values in place of interpolations.

    Raises:
        MissingVariableError: a variable is not set.
    """

    def text_of(text: str, path: str) -> str:
        asked = _INTERPOLATION.findall(text)
        if missing := [name for name in asked if name not in os.environ]:
            raise MissingVariableError(
                f"{path}={text}: the environment variable {missing[0]} is not set: set it to what "
                "it was when the run began"
            )
        for name in asked:
            hide(os.environ[name], interpolation(name))
        filled = _INTERPOLATION.sub(lambda match: os.environ[match.group(1)], text)
        if asked:
            hide(filled, text)
        return filled

    return _mapped(value, text_of)


def _mapped(value: Any, change: Callable[[str, str], str], path: str = "") -> Any:
    """Containers with changed texts; `change` gets a text and its path."""
    if isinstance(value, str):
        return change(value, path)
    below = f"{path}." if path else ""
    if isinstance(value, Mapping):
        return {
            change(key, path) if isinstance(key, str) else key: _mapped(
                inner, change, f"{below}{key}"
            )
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(v, change, f"{below}{i}") for i, v in enumerate(value))
    return value


class _Redacting:
    """A stream that writes `redacted` texts."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self._stream.writelines(map(redacted, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacting_output() -> Iterator[None]:
    """Keep variables' values out of what is printed, and of a traceback that ends the process."""
    out: Any = _Redacting(sys.stdout)
    error: Any = _Redacting(sys.stderr)
    # Python prints a traceback after the streams have been put back.
    sys.excepthook = _print_traceback
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        yield


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))
