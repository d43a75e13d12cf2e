"""The two sides of a test: a program that answers, and tests that ask, in a sandbox each.

Python runs this file as text, without any module of the project. A message is a line of JSON. The
tests' side sends the program, then asks for its names; `encoded` says how values cross.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

_PLAIN = (bool, int, float, str)
_SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_MOST_ITEMS = 100_000  # of an iterator, which may never end


class Remote:
    """The tests' reference to something of the program, by its path: a name and attributes."""

    def __init__(self, path: str, connection: Connection) -> None:
        self._path = path
        self._ask = connection.ask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask(self._path, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """A function of it, as in `math.sqrt(2)`."""
        return lambda *args, **kwargs: self._ask(f"{self._path}.{name}", args, kwargs)


class Connection:
    """Lines of JSON over two descriptors."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reader = os.fdopen(reading, "r", encoding="utf-8")
        self._writer = os.fdopen(writing, "w", encoding="utf-8")

    def send(self, message: Any) -> None:
        self._writer.write(json.dumps(message) + "\n")
        self._writer.flush()

    def receive(self) -> Any:
        line = self._reader.readline()
        if not line.endswith("\n"):
            raise EOFError("the other side has ended")
        return json.loads(line)

    def ask(self, path: str, args: Any, kwargs: Any) -> Any:
        """The program's answer to a call; raises what it raised, if that is built in."""
        self.send({"path": path, "args": encoded(args), "kwargs": encoded(kwargs)})
        answer = self.receive()
        if "error" in answer:
            raised = getattr(builtins, str(answer["error"]), None)
            if not (isinstance(raised, type) and issubclass(raised, Exception)):
                raised = RuntimeError
            raise raised("raised by the program")
        return decoded(answer["value"], lambda path: Remote(path, self))


def encoded(value: Any, keep: Any = None) -> Any:
    """A value as JSON. Subclasses cross as their base; `keep` names what cannot cross."""
    if isinstance(value, Remote):
        return {"reference": value._path}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or isinstance(value, _PLAIN):
        return next((plain(value) for plain in _PLAIN if isinstance(value, plain)), None)
    if isinstance(value, complex):
        return {"complex": [encoded(value.real), encoded(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [encoded(item, keep) for item in value]}
    if isinstance(value, Mapping):
        pairs = [[encoded(k, keep), encoded(v, keep)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, Iterator):
        return {"iterator": [encoded(item, keep) for item in islice(value, _MOST_ITEMS)]}
    if keep is None:
        raise TypeError(f"a {type(value).__name__} cannot be handed to the program")
    return {"reference": keep(value)}


def decoded(value: Any, find: Any) -> Any:
    """The value of `encoded`; `find` turns references into what they refer to."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "reference":
        return find(content)
    if kind == "float":
        return float(content)
    if kind == "complex":
        real, imaginary = (decoded(part, find) for part in content)
        return complex(real, imaginary)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decoded(k, find): decoded(v, find) for k, v in content}
    items = [decoded(item, find) for item in content]
    return iter(items) if kind == "iterator" else _SEQUENCES[kind](items)


def answer() -> None:
    """The program's side: load it, then answer calls until the tests end."""
    connection = Connection(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # what the program prints is no message
        os.dup2(nothing, standard)
    names: dict[str, Any] = {"__name__": "__main__"}
    kept: dict[str, Any] = {}

    def find(path: str) -> Any:
        first, *attributes = path.split(".")
        value = kept[first] if first in kept else names.get(first, getattr(builtins, first, None))
        if value is None and first not in names:
            raise NameError(first)
        for attribute in attributes:
            value = getattr(value, attribute)
        return value

    def keep(value: Any) -> str:
        key = f"#{len(kept)}"
        kept[key] = value
        return key

    exec(compile(connection.receive(), "<program>", "exec", dont_inherit=True), names)
    connection.send("loaded")
    while True:
        try:
            call = connection.receive()
        except EOFError:
            return
        try:
            args, kwargs = decoded(call["args"], find), decoded(call["kwargs"], find)
            message = {"value": encoded(find(call["path"])(*args, **kwargs), keep)}
        except Exception as error:
            message = {"error": type(error).__name__}
        connection.send(message)


def ask() -> None:
    """The tests' side: ends without an error if the program is loaded and passes."""
    connection = Connection(0, 1)
    task = connection.receive()
    connection.send(task["program"])
    if connection.receive() != "loaded":
        raise ValueError("the program has not been loaded")
    tests = ast.parse(task["tests"], "<tests>")
    names: dict[str, Any] = {name: Remote(name, connection) for name in _unbound(tests)}
    exec(compile(tests, "<tests>", "exec", dont_inherit=True), names)


def _unbound(tests: ast.Module) -> set[str]:
    """The names that tests use and neither define nor find among the built-in ones."""
    used: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(tests):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return used - bound


if __name__ == "__main__":
    sys.set_int_max_str_digits(0)
    {"answer": answer, "ask": ask, "try": lambda: None}[sys.argv[1]]()
