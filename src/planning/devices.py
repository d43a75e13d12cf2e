"""Devices and number formats: their names in configs and in torch, and what devices can do."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dtype_of(name: str) -> torch.dtype:
    """torch's number format of a `dtype` setting."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def uses_cuda(name: str) -> bool:
    """Whether a device setting means GPUs on this machine."""
    return name != "cpu" and bool(gpus())


def device_of(name: str) -> torch.device:
    """The torch device of a setting; `auto` is the GPU if there is one, else the CPU.

    The current CUDA device is the rank's own.

    Raises:
        ValueError: the setting is cuda, and there is no GPU.
    """
    import torch

    if uses_cuda(name):
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise ValueError("engine.device=cuda, but the driver shows no GPU: use engine.device=cpu")
    return torch.device("cpu")


@dataclass(frozen=True)
class DeviceFacts:
    """The facts about a device that a plan needs.

    Attributes:
        memory: bytes that a rank can have.
        matrix_rate: floating-point operations a second of dense bfloat16 matrix products (float32
            on a CPU); None where it is not known.
        bandwidth: bytes a second of its memory; None where it is not known.
        link: bytes a second to another device of the machine, one way; None where there is none.
        is_cpu: its memory is the machine's.
    """

    name: str
    memory: int
    matrix_rate: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    is_cpu: bool = False

    @property
    def usable(self) -> float:
        """Bytes that a plan counts on.

        The rest goes to the driver's context, to NCCL and to gaps between tensors; on a machine
        without a GPU, to the system and to libraries of other ranks.
        """
        return 0.93 * self.memory


# In the environment of a run that shares its GPU: the part of its memory that the run may take.
GPU_SHARE = "LINEARARD_GPU_SHARE"


def gpu_share() -> float:
    """The part of a GPU's memory that this process may take.

    Raises:
        ValueError: the environment says something else than a number above 0 and up to 1.
    """
    text = os.environ.get(GPU_SHARE, "1")
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{GPU_SHARE}: {text!r}; give a number above 0 and up to 1")
    return share


@cache
def gpus() -> tuple[DeviceFacts, ...]:
    """Names and memories of the GPUs that this process may use, asked of NVIDIA's driver.

    torch answers the same, but takes seconds to load, and a plan needs nothing else of it.
    """
    if metadata.version("torch").endswith("+cpu"):
        return ()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, handle = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    listed: list[DeviceFacts] = []
    for index in range(count.value):
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        driver.cuDeviceGet(ctypes.byref(handle), index)
        driver.cuDeviceGetName(name, len(name), handle)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        listed.append(DeviceFacts(name.value.decode(), memory.value))
    return tuple(listed)


# From the makers' data sheets (SXM parts, dense rates); memory as the driver reports it.
ACCELERATORS = {
    "a100": DeviceFacts("NVIDIA A100 80GB", int(79.2 * 2**30), 312e12, 2.04e12, 3e11),
    "h100": DeviceFacts("NVIDIA H100 80GB", int(79.2 * 2**30), 989e12, 3.35e12, 4.5e11),
    "h200": DeviceFacts("NVIDIA H200", int(139.8 * 2**30), 989e12, 4.8e12, 4.5e11),
}

# A core of a present server: 16 float32 multiply-adds a clock in two units at about 2 GHz, half of
# it reached; and its share of memory bandwidth.
_CPU_CORE_RATE, _CPU_CORE_BANDWIDTH = 6e10, 1e10


def device_facts(device: str, *, local_ranks: int = 1) -> DeviceFacts:
    """Facts of this machine's device, for one of `local_ranks` ranks on it.

    Args:
        device: `auto`, `cpu` or `cuda`, as in configs.
        local_ranks: ranks that share the machine: each has its own GPU, but a part of a CPU.
    """
    if uses_cuda(device):
        gpu = gpus()[0]
        gpu = replace(gpu, memory=int(gpu.memory * gpu_share()))
        for kind, facts in ACCELERATORS.items():
            if kind in gpu.name.lower():
                return replace(facts, name=gpu.name, memory=gpu.memory)
        return gpu
    memory = host_memory()
    cores = os.cpu_count() or 1
    return DeviceFacts(
        f"CPU, {cores} cores",
        memory // local_ranks,
        cores * _CPU_CORE_RATE / local_ranks,
        cores * _CPU_CORE_BANDWIDTH / local_ranks,
        is_cpu=True,
    )


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gib(size: float) -> str:
    """Bytes as GiB, with two decimals."""
    return f"{size / 2**30:.2f}"


class DeviceError(ValueError):
    """More than a machine can do; the message says how much it can."""


def check_processes(asked: int, setting: str) -> None:
    """Refuse more processes than a machine could start.

    Raises:
        DeviceError: with the setting and the largest number.
    """
    most = max(_PROCESSES, os.cpu_count() or 1)
    if asked > most:
        raise DeviceError(f"{setting}: {asked} processes on this machine; give at most {most}")


# Without as many cores a machine still runs a test of so many ranks.
_PROCESSES = 64
