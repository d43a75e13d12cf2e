"""The search for launch parameters: what it tries, what it refuses, what it writes."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from kernels import tune
from kernels.relation_kl import launch
from kernels.relation_kl.launch import ShapeClass

SHAPES = [
    ShapeClass(*facts)
    for facts in itertools.product(launch.KERNELS, launch.HEAD_SIZES, launch.ELEMENT_BYTES)
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.key)
def test_candidates_begin_with_the_present_parameters(shape) -> None:
    device = torch.device("cpu")
    tried = tune.candidates(shape, device)
    assert tried[0] == launch.lookup(shape, device)
    assert 4 < len(tried) == len(set(tried)) < 30


def test_an_unknown_head_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"--head-sizes 48: allowed are 16,32,64,128,256"):
        tune.tune([48, 64], lambda run: 0.0)


def test_the_table_is_written_as_it_is_kept() -> None:
    kept = launch.TABLE_FILE.read_text(encoding="utf-8")
    assert tune._text(json.loads(kept)) == kept
