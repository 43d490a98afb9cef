"""Triton for the kernels: importable without Triton installed, and correct in its interpreter.

Without the package triton (it has Linux wheels only), `jit` returns the function, which is never
called. Under TRITON_INTERPRET=1 two bugs of the interpreter (3.7.1, 3.9.0) are fixed: `tl.dot`
multiplies the bit patterns of bfloat16, and its casts to bfloat16 and float16 truncate.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    jit = triton.jit
except ImportError:  # pragma: no cover (no Linux)
    triton = tl = TensorDescriptor = None

    def jit(function: Any) -> Any:
        """Return the function unchanged: without Triton it is never called."""
        return function


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Context in which a CUDA device is the current one: Triton launches on that, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def launch(kernel: Any, grid: tuple[int, ...], first: Any, *arguments: Any, **options: Any) -> None:
    """Run `kernel(first, *arguments)` over `grid` on the device of `first`, a tensor or its descriptor."""
    with current_device(getattr(first, "base", first).device):
        kernel[grid](first, *arguments, **options)


def _fix_interpreter() -> None:
    import numpy as np
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast = builder.create_dot, builder.cast_impl

    def widened(value: Any) -> Any:
        if value.dtype.scalar != tl.bfloat16:
            return value
        return handle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def fixed_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def fixed_cast(self: Any, value: Any, to: Any) -> Any:
        if (value.dtype.scalar, to.scalar) == (tl.bfloat16, tl.float32):
            return widened(value)
        if (value.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, value, to)
        bits = np.ascontiguousarray(value.data, dtype=np.float32).view(np.uint32)
        nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = np.where(np.isnan(value.data), 0x7FC0, nearest_even)
        return handle(rounded.astype(np.uint16), tl.bfloat16)

    builder.create_dot, builder.cast_impl = fixed_dot, fixed_cast
    builder.create_fp_to_fp = lambda self, value, to, rounding: fixed_cast(self, value, to)


if triton is not None and os.environ.get("TRITON_INTERPRET") == "1":
    _fix_interpreter()
