"""Say what works on this machine, and how to get the rest: python -m src.doctor.

Each check answers with what it found and, if something is missing, with its remedy. Nothing is
installed or sent. The exit code is 1 if something is missing without which no run starts.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import netrc
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

try:
    from rich.console import Console
    from rich.table import Table

    from src import tracking
    from src.assets.cache import CACHE_VARIABLE, CacheError, cache_dir
    from src.planning.devices import gib, gpus
except ModuleNotFoundError as error:
    sys.exit(
        f"error: {sys.executable} lacks the package {error.name}; type `make setup`, then "
        ".venv/bin/python -m src.doctor"
    )

State = Literal["works", "limited", "missing"]
_STYLES: dict[State, str] = {"works": "green", "limited": "yellow", "missing": "red"}
# Enough for the quickstart: a small model, its texts, one checkpoint and its export.
_LEAST_DISK = 5 * 2**30
# A 7B's weights, one checkpoint of all parameters with AdamW's state, and an export in bfloat16.
_DISK_OF_A_7B = 140 * 2**30
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """The answer of a check.

    Attributes:
        state: `works`; `limited` if runs start without it; `missing` if none does.
        remedy: what to type or install; empty if everything works.
    """

    state: State
    text: str
    remedy: str = ""


def python() -> Finding:
    """Python's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("works", version)
    return Finding(
        "missing", f"{version}; 3.11 to 3.13 are supported", "make setup PYTHON=python3.12"
    )


def packages() -> Finding:
    """The packages that every run imports."""
    wanted = ("torch", "transformers", "deepspeed", "peft", "hydra", "lm_eval")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("missing", f"not installed: {', '.join(missing)}", "make setup")
    names = ("torch", "transformers", "deepspeed")
    return Finding("works", ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names))


def gpu() -> Finding:
    """The GPUs that the driver shows and torch can use."""
    import torch

    if listed := gpus():
        names = ", ".join(f"{gpu.name} ({gib(gpu.memory)} GiB)" for gpu in listed)
        if torch.cuda.is_available():
            return Finding("works", names)
        return Finding("limited", f"{names}, but torch cannot use it", "update NVIDIA's driver")
    if Path("/proc/driver/nvidia").exists():
        return Finding(
            "limited",
            f"there is a driver, but torch {torch.__version__} or this process sees no GPU",
            "install a CUDA build of torch (https://pytorch.org), and unset CUDA_VISIBLE_DEVICES",
        )
    return Finding(
        "limited",
        "none: small models run on the CPU",
        "engine=cpu; plan for a GPU with dry_run=true plan_for=h100",
    )


def triton() -> Finding:
    """The fused kernels of the relation loss."""
    import torch

    from kernels.relation_kl import relation_kl

    if not torch.cuda.is_available():
        return Finding("limited", "no GPU: the chunked loss in plain torch is used", "none needed")
    rows_bhtd = torch.randn(1, 2, 64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    try:
        relation_kl(rows_bhtd, torch.randn_like(rows_bhtd), backend="triton").backward()
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        return Finding(
            "missing",
            f"a kernel does not run: {reason}",
            "install gcc and the triton of constraints.txt; python -m kernels.bench says more",
        )
    return Finding("works", f"triton {importlib.metadata.version('triton')}: a kernel ran")


def compilers() -> Finding:
    """What DeepSpeed's and torch's compiled parts need; most runs compile nothing."""
    tools = {"a C++ compiler": os.environ.get("CXX", "g++"), "ninja": "ninja"}
    missing = [f"{what} ({tool})" for what, tool in tools.items() if shutil.which(tool) is None]
    if not missing:
        return Finding("works", "offload_optimizer and compile can be used")
    return Finding(
        "limited",
        f"not on the path: {', '.join(missing)}; engine.student.offload_optimizer=true and "
        "engine.compile=true are refused",
        "apt-get install g++ ninja-build",
    )


def disk() -> Finding:
    """Free space below outputs/."""
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{gib(free)} GiB free in {Path.cwd()}"
    if free < _LEAST_DISK:
        return Finding("missing", text, "free some space, or name another place with run_dir=DIR")
    if free < _DISK_OF_A_7B:
        return Finding(
            "limited",
            f"{text}; a run of a 7B takes up to {gib(_DISK_OF_A_7B)}",
            "run_dir=DIR on a larger disk, checkpoint.keep=1",
        )
    return Finding("works", text)


def caches() -> Finding:
    """The folder of downloads and tokens."""
    try:
        folder = cache_dir()
    except CacheError as error:
        reason, _, remedy = str(error).partition("; ")
        return Finding("missing", reason, remedy)
    free = shutil.disk_usage(folder).free
    text = f"{folder}, {gib(free)} GiB free"
    if not os.access(folder, os.W_OK):
        return Finding("missing", f"{text}, not writable", f"{CACHE_VARIABLE}=DIR names another")
    if free < _LEAST_DISK:
        return Finding("limited", text, f"{CACHE_VARIABLE}=DIR on a larger disk")
    return Finding("works", text)


def wandb() -> Finding:
    """The login of Weights & Biases."""
    if os.environ.get("WANDB_API_KEY"):
        return Finding("works", "WANDB_API_KEY is set")
    try:
        has_login = tracking.has_login()
    except netrc.NetrcParseError as error:
        # Its message may quote the file.
        return Finding("limited", f"~/.netrc: line {error.lineno} is malformed", "wandb login")
    if has_login:
        return Finding("works", f"logged in at {tracking.server()}")
    return Finding(
        "limited",
        "no login: runs are tracked offline",
        "wandb login, then tracking=wandb_online; or wandb sync later",
    )


def hub() -> Finding:
    """Hugging Face's hub, for models and texts that no package holds."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Finding(
            "limited", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE; or model.path=DIR"
        )
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    try:
        socket.create_connection((host, 443), _SECONDS).close()
    except OSError as error:
        return Finding(
            "limited",
            f"{host} cannot be reached ({error})",
            "set HTTPS_PROXY or HF_ENDPOINT; or use model=smollm2_135m data=kjv, which are "
            "packages, or model.path=DIR data=files",
        )
    if get_token() is None:
        return Finding(
            "limited", f"{host} answers; no login for gated models (LLaMA)", "hf auth login"
        )
    return Finding("works", f"{host} answers, and there is a login")


def browsers() -> Finding:
    """A browser for the dashboard's tests and screenshots."""
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser:
        return Finding("works", browser)
    return Finding(
        "limited",
        "none here: the dashboard's browser tests are skipped; the page opens in any browser",
        "apt-get install chromium",
    )


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": python,
    "packages": packages,
    "GPU": gpu,
    "fused loss": triton,
    "compilers": compilers,
    "disk": disk,
    "cache": caches,
    "W&B": wandb,
    "hub": hub,
    "browser": browsers,
}
# Checks that need the packages to be installed.
_AFTER_PACKAGES = ("GPU", "fused loss", "hub")


def examine() -> dict[str, Finding]:
    """The findings of all checks; some are left out if packages are missing."""
    findings: dict[str, Finding] = {}
    for name, check in CHECKS.items():
        if name in _AFTER_PACKAGES and findings["packages"].state == "missing":
            continue
        findings[name] = check()
    return findings


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. There is no argument but `--help`."""
    argparse.ArgumentParser("python -m src.doctor", description=__doc__).parse_args(arguments)
    findings = examine()
    table = Table("check", "state", "found", "remedy", title="This machine", title_justify="left")
    for name, finding in findings.items():
        state = f"[{_STYLES[finding.state]}]{finding.state}[/]"
        table.add_row(name, state, finding.text, finding.remedy)
    Console().print(table)
    sys.exit(any(finding.state == "missing" for finding in findings.values()))


if __name__ == "__main__":
    main()
