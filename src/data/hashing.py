"""A 64-bit mixing function over numpy arrays, equal on every platform and numpy version."""

from __future__ import annotations

import numpy as np

Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]


def mix64(values: np.ndarray) -> Hashes:
    """SplitMix64's step and finalizer (Steele, Lea and Flood, 2014), elementwise, modulo 2**64."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
