"""Builds models weight by weight, so that no process ever holds a whole model (ZeRO-3).

Each weight is drawn or read, and handed to the engine, which keeps this rank's shard. Only then
comes the next weight. The bits equal those of a model that is loaded whole. Buffers (RoPE's
frequencies) are small and computed as usual.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INDEX = "model.safetensors.index.json"


class Sharding(Protocol):
    """Shards weights over ranks; every rank hands it the same weights in the same order."""

    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace whole parameters by this rank's shards, in place; shards stay as they are."""

    def known(self) -> AbstractContextManager[None]:
        """Inside the block PEFT knows that weights are sharded, and gathers those it reads."""
        ...


class WeightsError(ValueError):
    """Files that lack weights of a model."""


@contextmanager
def drawing(sharding: Sharding) -> Iterator[None]:
    """Inside the block, `from_config` of transformers hands on each module's weights when drawn.

    The random generator gives the same numbers in the same order as outside the block. Modules
    still draw in their constructors, one at a time, although transformers draws again.
    """
    from transformers import PreTrainedModel

    handed_on: set[int] = set()
    initialize: Callable[..., None] = PreTrainedModel._initialize_weights

    def forget(module: nn.Module, name: str, child: nn.Module | None) -> None:
        if child is None:
            return
        for attribute, parameter in list(child.named_parameters(recurse=False)):
            if id(parameter) not in handed_on:
                setattr(child, attribute, _emptied(parameter))

    def one_by_one(model: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        waiting = [name for name, p in module.named_parameters(recurse=False) if p.is_meta]
        for name in waiting:
            empty = torch.empty_like(getattr(module, name), device=torch.get_default_device())
            setattr(module, name, nn.Parameter(empty))
        initialize(model, module, *args, **kwargs)
        drawn = [getattr(module, name) for name in waiting]
        handed_on.update(map(id, drawn))
        sharding(drawn)

    hook = register_module_module_registration_hook(forget)
    # transformers draws module by module there, and has no hook for it.
    PreTrainedModel._initialize_weights = one_by_one  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = initialize  # type: ignore[method-assign]  # as above
        hook.remove()


def read(
    make: Callable[[], PreTrainedModel], folder: Path, dtype: torch.dtype, sharding: Sharding
) -> PreTrainedModel:
    """A model with the weights of a folder's safetensors files, which are mapped, not loaded.

    Args:
        folder: in the form that `save_pretrained` writes.

    Raises:
        WeightsError: a weight is missing or has another shape, or a file is damaged.
    """
    from safetensors import safe_open

    def forget(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return None if parameter.is_meta else _emptied(parameter)

    hook = register_module_parameter_registration_hook(forget)  # type: ignore[arg-type]  # torch takes what it returns
    try:
        network = make()
    finally:
        hook.remove()
    places = _places(network)
    files = _files(folder)
    chosen: dict[str, list[tuple[nn.Module, str]]] = {}
    for names, owners in places:
        # Tied weights have several names, of which a file needs only one.
        held = [name for name in names if name in files]
        if not held:
            raise WeightsError(f"{folder} has no weights {names[0]}")
        chosen[held[0]] = owners
    for file in dict.fromkeys(files.values()):
        with _readable(file):
            opening = safe_open(file, framework="pt")
        with opening as opened:
            held = [n for n in opened.keys() if files.get(n) == file and n in chosen]  # noqa: SIM118
            for name in held:
                owners = chosen.pop(name)
                wanted = getattr(*owners[0]).shape
                with _readable(file):
                    tensor = opened.get_tensor(name)
                if tensor.shape != wanted:
                    raise WeightsError(
                        f"{file}: {name} has shape {list(tensor.shape)}, the model {list(wanted)}"
                    )
                parameter = nn.Parameter(tensor.to(dtype))
                for module, attribute in owners:
                    setattr(module, attribute, parameter)
                sharding([parameter])
    for name in chosen:
        raise WeightsError(f"{files[name]} has no weights {name}, which {_INDEX} says it has")
    return network


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn errors inside the block into one that names the damaged or missing weights file."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} is damaged or missing ({error}): copy or download it again"
        ) from error


@contextmanager
def adding_adapters(sharding: Sharding) -> Iterator[None]:
    """Inside the block, PEFT's adapters are handed on when they are put into the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def hand_on(module: nn.Module, name: str, child: nn.Module | None) -> None:
        if isinstance(child, BaseTunerLayer):
            sharding(child.parameters())

    hook = register_module_module_registration_hook(hand_on)
    try:
        with sharding.known():
            yield
    finally:
        hook.remove()


def _emptied(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def _places(network: nn.Module) -> list[tuple[list[str], list[tuple[nn.Module, str]]]]:
    """For each parameter its names, and the modules and attributes that hold it."""
    places: dict[int, tuple[list[str], list[tuple[nn.Module, str]]]] = {}
    for prefix, module in network.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            names, owners = places.setdefault(id(parameter), ([], []))
            names.append(f"{prefix}.{attribute}" if prefix else attribute)
            owners.append((module, attribute))
    return list(places.values())


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor, by the folder's index or its only weights file."""
    from safetensors import safe_open

    index, single = folder / _INDEX, folder / "model.safetensors"
    if index.is_file():
        try:
            held: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{index} is not an index of weights ({type(error).__name__}: {error}): copy or "
                "download it again"
            ) from error
        return {name: folder / file for name, file in sorted(held.items(), key=lambda i: i[::-1])}
    if not single.is_file():
        raise WeightsError(f"{folder} has neither {single.name} nor {index.name}")
    with _readable(single), safe_open(single, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), single)
