"""What the stages of `perf.gpu_check` share: where rows go, random inputs, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import reca_kernels as rk
import torch
from reca_kernels import Layout
from torch import Tensor


class Stage:
    """Where the rows of a stage go, and on what it runs.

    A row has a `name`, mostly a `verdict` (`passed`, `failed`), and figures. Each is one JSON line, appended when it is
    found, so that it stays when the stage's time is over.
    """

    def __init__(self, name: str, rows: Path, dry: bool, seed: int) -> None:
        self.name, self.dry, self.seed, self._rows = name, dry, seed, rows
        self.device = torch.device("cpu" if dry else "cuda")

    def row(self, name: str, passed: bool | None = None, **figures: object) -> None:
        """Write one row."""
        verdict = {} if passed is None else {"verdict": "passed" if passed else "failed"}
        found = {"name": name} | verdict | figures
        print(found, flush=True)
        with self._rows.open("a") as file:
            file.write(json.dumps({"stage": self.name} | found) + "\n")

    def guarded(self, name: str, function: Callable[[], None]) -> None:
        """Run one part; an exception is a failed row."""
        try:
            function()
        except Exception as error:  # the other parts are still worth their time
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            self.row(name, False, error=said)

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0
    ) -> Tensor:
        """A leaf of normally distributed numbers."""
        generator = torch.Generator(self.device).manual_seed(self.seed + len(shape) + shape[0])
        made = torch.randn(shape, generator=generator, device=self.device) * scale
        return made.to(dtype).requires_grad_()


def device_ms(call: Callable[[], object], count: int = 10) -> float:
    """Milliseconds of kernels per call: what a step whose device is busy has to wait for, without the host's time."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(count):
            call()
        torch.cuda.synchronize()
    return float(sum(one.self_device_time_total for one in found.key_averages())) / 1e3 / count


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference as a share of the expected norm."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def brief(errors: Sequence[float]) -> str:
    """Errors as words."""
    return " ".join(f"{one:.1e}" for one in errors)


def attend(leaves: Sequence[Tensor], layout: Layout, how: Any) -> Tensor:
    """Block attention of q, k and v by the named implementation."""
    q, k, v = leaves
    return rk.block_attention(q, k, v, layout, implementation=how)
