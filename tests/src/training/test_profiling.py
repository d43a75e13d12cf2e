"""A profile has the steps it says, a trace in the run folder, and a table of kinds of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.training.profiling import PROFILED, WARM_UP, StepProfile, breakdown, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("aten::mm", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("backward_kernel", "relations"),
        ("_rms_norm_backward_kernel", "norms, RoPE, gates (fused)"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "between ranks"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<8, ...>", "elementwise and the rest"),
    ],
)
def test_kernels_are_told_apart_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def kernel(name: str, start: float, end: float) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name="CUDA"),
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
    )


def test_time_in_which_no_kernel_runs_is_what_no_span_covers() -> None:
    events = [
        kernel("aten::mm", 0, 1000),
        kernel("aten::mm", 500, 2000),  # beside the first
        kernel("Memcpy", 5000, 6000),
    ]
    rows, busy = breakdown(events, steps=2, cuda=True)
    assert rows == [("matrix products", (1.25, 1.0)), ("copies", (0.5, 0.5))]
    assert busy == 1.5


@pytest.mark.parametrize(("first", "total"), [(0, 20), (4, 6), (0, 2)])
def test_the_profiled_steps_are_within_the_stage(
    first: int, total: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = StepProfile(tmp_path / "profile" / "ard.json.gz", first, total, torch.device("cpu"))
    profiled = []
    for step in range(first, total):
        with profile.around(step):
            (torch.ones(8, 8) @ torch.ones(8, 8)).sum()
            profiled.append(profile._profiler is not None)
    last = min(total, first + WARM_UP + PROFILED)
    expected = range(max(first, last - PROFILED), last)
    assert [step for step, on in zip(range(first, total), profiled, strict=True) if on] == list(
        expected
    )
    assert (tmp_path / "profile" / "ard.json.gz").stat().st_size > 100
    printed = capsys.readouterr().out
    assert f"profile of {len(expected)} steps" in printed
    assert "matrix products" in printed


def test_a_run_with_profile_leaves_a_trace_of_each_stage(
    train_tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_tiny("profile=true")
    assert {file.name for file in (folder / "profile").iterdir()} == {"ard.json.gz", "cpt.json.gz"}
    assert capsys.readouterr().out.count("profile of") == 2
