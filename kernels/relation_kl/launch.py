"""Launch parameters of the Triton kernels: a committed table, so that no run searches for them.

`launch_table.json` maps a device class (``sm90``, ``interpreter``, ``default``, ...) to shape
classes, and those to ``[block_m, block_n, num_warps, num_stages]``. ``default`` has every shape
class and fits the smallest shared memory. Other device classes may leave shape classes out; they
then take the parameters of ``default``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch

Kernel = Literal[
    "self_forward",
    "self_backward",
    "attention_forward",
    "attention_backward_queries",
    "attention_backward_keys",
]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
HEAD_SIZES = (16, 32, 64, 128, 256)
ELEMENT_BYTES = (2, 4)
TABLE_FILE = Path(__file__).with_name("launch_table.json")


@dataclass(frozen=True)
class Launch:
    """Tokens of a program's own block and of the blocks it visits, warps, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ShapeClass:
    """What a launch depends on; head size (padded) and bytes an element are the larger side's."""

    kernel: Kernel
    head_size: int
    element_bytes: int

    @property
    def key(self) -> str:
        return f"{self.kernel}/d{self.head_size}/{self.element_bytes}-byte"


_overrides: dict[Kernel, Launch] = {}


def padded_head_size(head_dim: int) -> int:
    """The power of two that a head of this size takes in the kernels."""
    return max(HEAD_SIZES[0], 1 << (head_dim - 1).bit_length())


def device_class(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def lookup(shape: ShapeClass, device: torch.device) -> Launch:
    """The parameters of a launch: an override, else the device class's, else the default's."""
    if shape.kernel in _overrides:
        return _overrides[shape.kernel]
    table = _table()
    return table.get(device_class(device), {}).get(shape.key) or table["default"][shape.key]


@contextmanager
def overridden(launches: Mapping[Kernel, Launch]) -> Iterator[None]:
    """Uses other parameters for some kernels, in all threads. For tuning and tests."""
    before = dict(_overrides)
    _overrides.update(launches)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


@cache
def _table() -> dict[str, dict[str, Launch]]:
    plain = json.loads(TABLE_FILE.read_text(encoding="utf-8"))
    return {
        device: {key: Launch(*numbers) for key, numbers in launches.items()}
        for device, launches in plain.items()
    }
