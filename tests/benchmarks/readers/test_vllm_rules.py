"""The rules that quick tests go by are those of vLLM's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.exports import SCALINGS, TARGET, WINDOW
from benchmarks.readers import PACKAGES, read
from benchmarks.readers.vllm_rules import vllm_rope, vllm_window
from src.models.config import native_rope
from src.models.hf_config import resolved_shape, scaled_config
from src.models.loading import load_model
from src.models.rope.yarn import YarnScaling
from src.training.export import Export

CASES = {scaling.type: scaling for scaling in SCALINGS}
CASES["yarn, given attention"] = YarnScaling("yarn", TARGET, attention_factor=1.3)
CASES["yarn, mscale"] = YarnScaling("yarn", TARGET, mscale=1.0, mscale_all_dim=0.8)
CASES["yarn, given factor"] = YarnScaling("yarn", TARGET, factor=5.0)


@pytest.mark.thorough
@pytest.mark.slow
def test_the_rules_are_those_of_the_package(
    compose_run: Callable[..., Any], tmp_path: Path
) -> None:
    """It fetches vLLM's wheel of 340 MB once."""
    model = replace(compose_run("model=tiny").model, native_window=WINDOW)
    rope = native_rope(model, resolved_shape(model))
    started = []
    for name, scaling in CASES.items():
        network = load_model(model, scaled_config(model, scaling), dtype=torch.float32)
        folder = tmp_path / name
        Export(folder, model, scaling, torch.float32, card="").write(network)
        started.append({"length": TARGET, "overrides": scaling.vllm_overrides(rope)})
    asked = {"folders": [str(tmp_path / name) for name in CASES], "started": started}
    found = read("vllm_reader.py", PACKAGES["vLLM"], asked, tmp_path / "found.npz")
    for number, (name, start) in enumerate(zip(CASES, started, strict=True)):
        overrides = start["overrides"]
        frequencies, attention = vllm_rope(tmp_path / name, rope.head_dim, overrides)
        np.testing.assert_allclose(found[f"frequencies/{number}"], frequencies, rtol=1e-6)
        assert float(found[f"attention/{number}"]) == pytest.approx(attention, rel=1e-6)
        assert int(found[f"window/{number}"]) == TARGET <= vllm_window(tmp_path / name, overrides)
        # Without a length, vLLM starts with the native window of longrope.
        longest = WINDOW if name == "longrope" else vllm_window(tmp_path / name)
        assert int(found[f"default/{number}"]) == longest, name
