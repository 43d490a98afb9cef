"""Which implementation runs: Triton where the device supports it and has shown so, torch elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

Implementation = Literal["auto", "triton", "torch"]

log = logging.getLogger(__name__)
TRITON_TYPES = (torch.float16, torch.bfloat16, torch.float32)
LEAST_CAPABILITY = (8, 0)  # Ampere: the tiles are tuned and compiled for sm_80 and later


def chosen(kernel: str, implementation: str, example: Tensor, obstacle: str | None = None) -> str:
    """`triton` or `torch` for inputs like `example`; `obstacle`: why these inputs have no kernel.

    ValueError on an unknown implementation, and where `triton` is demanded but cannot run.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation is {implementation!r}; choose one of: {', '.join(get_args(Implementation))}"
        )
    if implementation == "torch":
        return "torch"
    if obstacle is None and example.dtype not in TRITON_TYPES:
        obstacle = f"there is no kernel for {example.dtype}"
    if implementation == "triton":
        if problem := obstacle or cannot_run(example.device):
            raise ValueError(f"{kernel}: implementation 'triton' cannot run: {problem}; use 'auto'")
        return "triton"
    if obstacle is None and example.device.type == "cuda":
        choice, _ = automatic(kernel, example.device.index or 0)
        return choice
    _log_once(kernel, "torch", obstacle or f"the tensors are on {example.device.type}")
    return "torch"


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1), so that a CPU can."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def cannot_run(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on this device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreted():
        return None
    if device.type != "cuda":
        return f"the tensors are on {device.type} and TRITON_INTERPRET is not 1"
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


@cache
def automatic(kernel: str, index: int) -> tuple[str, str]:
    """What `auto` takes on CUDA device `index`, and why: the kernel must first match its reference.

    The comparison runs once per process, kernel and device, and is logged.
    """
    from reca_kernels.selfcheck import first_difference

    device = torch.device("cuda", index)
    reason = cannot_run(device)
    if reason is None and interpreted():
        reason = "TRITON_INTERPRET is 1, which is for tests"
    if reason is None:
        try:
            reason = first_difference(kernel, device)
        except Exception as error:  # a compiler or driver that fails must not stop a run
            reason = f"its self-check failed: {type(error).__name__}: {error}"
        if reason is not None:
            log.warning("%s: falling back to torch: %s", kernel, reason)
    choice = ("torch", reason) if reason else ("triton", "it matches its reference on this device")
    _log_once(kernel, *choice)
    return choice


@cache
def _log_once(kernel: str, choice: str, reason: str) -> None:
    log.info("%s: %s, because %s", kernel, choice, reason)
