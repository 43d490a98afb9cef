"""Two ways of doing the same work, measured side by side in one process on one thread.

Calls of the two sides alternate, so that a change of the machine's load meets both; times are CPU seconds of the
process, as other processes share the machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from perf import processor
from reca.core.artifacts import versions

T = TypeVar("T")
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_TOLERANCE = 1e-3  # of the largest value; the sides sum in different orders


def clocked(call: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of a call, and its result."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def alternating(
    sides: Mapping[str, Callable[[], T]], repeats: int, reset: Callable[[], None] | None = None
) -> tuple[dict[str, list[float]], dict[str, T]]:
    """CPU seconds of every repeat by side, and each side's last result; `reset` runs after each repeat of both."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, T] = {}
    for _ in range(repeats):
        for side, call in sides.items():
            spent, results[side] = clocked(call)
            seconds[side].append(spent)
        if reset:
            reset()
    return seconds, results


def relative_difference(found: Tensor, expected: Tensor, where: str) -> float:
    """Largest difference relative to the largest expected value; AssertionError above 1e-3."""
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error < _TOLERANCE, f"{where}: the two sides differ by {error:.1e}"
    return error


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd saves in a forward pass for the backward pass, without weights; each storage counts once."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(seen.values())


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak of resident memory during a call, above what was resident before; in a forked process (Linux)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # what is freed goes back to the system at once, or a peak would show the allocator's habits (glibc)
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 1 << 16)
        library.malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
        call()
        os.write(writing, str(_status("VmHWM") - before).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return int(said)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def gradients(model: nn.Module, step: Callable[[], object]) -> dict[str, Tensor]:
    """Copies of the gradients by name that `step`, a forward and backward pass, leaves."""
    step()
    return {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


def gradient_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Norm of the difference of all gradients, relative to the norm of all expected ones.

    Not tensor by tensor: keys' biases have a gradient of zero but for rounding. One side's missing tensors are zeros.
    """
    names = {*found, *expected}
    none = torch.zeros(())
    apart = torch.stack([(found.get(n, none) - expected.get(n, none)).norm() for n in names])
    return float(apart.norm() / torch.stack([g.norm() for g in expected.values()]).norm())


def write_settings(
    out: Path, what: str, sizes: str, settings: Iterable[str], measure: Callable[[str], Any]
) -> None:
    """Measure one setting after another; the file is complete after each."""
    found: list[dict[str, Any]] = []
    result = {
        "what": what,
        "sizes": sizes,
        "machine": {"processor": processor(), "system": platform.system(), "threads": 1},
        "versions": versions(),
        "clock": "CPU seconds of the process, medians of alternating repeats",
        "settings": found,
    }
    for setting in settings:
        found.append(measure(setting))
        print(f"{setting}: {found[-1]['speedup']:.2f} times as fast", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
