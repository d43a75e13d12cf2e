"""SplitMix64 against its published sequence."""

from __future__ import annotations

import numpy as np

from src.data.hashing import mix64

GOLDEN_RATIO = 0x9E3779B97F4A7C15


def test_it_is_splitmix64() -> None:
    # The generator's first outputs for seed 0, as in the Java and xoshiro reference programs.
    states = np.array([step * GOLDEN_RATIO % 2**64 for step in range(3)], dtype=np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix64(states).tolist() == expected


def test_every_integer_type_gives_the_same() -> None:
    values = np.array([0, 1, 255, 65535])
    assert mix64(values.astype(np.uint16)).tolist() == mix64(values).tolist()
