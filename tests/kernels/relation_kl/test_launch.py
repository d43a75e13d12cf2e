"""The table of launch parameters: whole, sane, and overridable for the tuner."""

from __future__ import annotations

import itertools

import pytest
import torch

from kernels.relation_kl import launch
from kernels.relation_kl.launch import Launch, ShapeClass

SHAPES = [
    ShapeClass(*facts)
    for facts in itertools.product(launch.KERNELS, launch.HEAD_SIZES, launch.ELEMENT_BYTES)
]
CPU = torch.device("cpu")


def test_the_default_has_every_shape_class_and_others_only_such() -> None:
    table = launch._table()
    known = {shape.key for shape in SHAPES}
    assert set(table["default"]) == known
    assert all(set(launches) <= known for launches in table.values())


@pytest.mark.parametrize("device", launch._table())
def test_numbers_are_what_triton_takes(device) -> None:
    for chosen in launch._table()[device].values():
        for block in (chosen.block_m, chosen.block_n):
            assert block in (16, 32, 64, 128, 256)
        assert chosen.num_warps in (1, 2, 4, 8, 16)
        assert 1 <= chosen.num_stages <= 8


def test_unknown_devices_and_missing_classes_take_the_default(monkeypatch) -> None:
    shape = SHAPES[0]
    default = launch._table()["default"][shape.key]
    for known in ({}, {"sm77": {}}):
        table = {"default": {shape.key: default}, **known}
        monkeypatch.setattr(launch, "_table", lambda table=table: table)
        monkeypatch.setattr(launch, "device_class", lambda device: "sm77")
        assert launch.lookup(shape, CPU) == default


def test_a_device_class_goes_before_the_default(monkeypatch) -> None:
    shape, own = SHAPES[0], Launch(16, 32, 2, 5)
    table = {"default": {shape.key: Launch(64, 64, 4, 2)}, "interpreter": {shape.key: own}}
    monkeypatch.setattr(launch, "_table", lambda: table)
    assert launch.lookup(shape, CPU) == own


def test_overrides_hold_for_their_kernels_and_end() -> None:
    forward, backward = (ShapeClass(name, 64, 2) for name in ("self_forward", "self_backward"))
    before = launch.lookup(forward, CPU), launch.lookup(backward, CPU)
    tried, inner = Launch(16, 16, 1, 1), Launch(32, 16, 1, 1)
    with launch.overridden({"self_forward": tried}):
        assert (launch.lookup(forward, CPU), launch.lookup(backward, CPU)) == (tried, before[1])
        with launch.overridden({"self_forward": inner}):
            assert launch.lookup(forward, CPU) == inner
        assert launch.lookup(forward, CPU) == tried
    assert (launch.lookup(forward, CPU), launch.lookup(backward, CPU)) == before


@pytest.mark.parametrize(
    ("head_dim", "padded"), [(1, 16), (16, 16), (17, 32), (80, 128), (128, 128), (192, 256)]
)
def test_heads_are_padded_to_a_power_of_two(head_dim, padded) -> None:
    assert launch.padded_head_size(head_dim) == padded
    assert padded in launch.HEAD_SIZES
