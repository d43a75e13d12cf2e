"""Liger-Kernel's kernels on a CPU, in Triton's interpreter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from triton import language as tl
from triton.runtime import interpreter


@contextmanager
def liger_kernels() -> Iterator[None]:
    """Inside the block, the kernels that src/passes/fused.py launches are interpreted."""
    names = [f"liger_kernel.ops.{name}" for name in ("rms_norm", "rope", "swiglu")]
    ordinary = interpreter._implicit_cvt

    def with_floats(argument: Any) -> Any:
        """An argument of a kernel. The interpreter forgets that a float is a tensor there."""
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return ordinary(argument)

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        patch.setenv("TRITON_INTERPRET", "1")
        norms: Any = importlib.import_module(names[0])
        # CUDA's own function has no Python; and the interpreter patches Triton's at each launch.
        patch.setattr(norms, "rsqrt", lambda x: tl.rsqrt(x))
        patch.setattr(interpreter, "_implicit_cvt", with_floats)
        for name in names[1:]:
            importlib.import_module(name)
        patch.delenv("TRITON_INTERPRET")
        try:
            yield
        finally:
            for name in names:
                sys.modules.pop(name)
