"""Chooses the implementation: Triton on a device that passed the self-check, torch otherwise."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal, TypeVar, get_args

import torch

from reca_kernels import selfcheck
from reca_kernels.runtime import cannot_run, gpu_index, interpreted

Implementation = Literal["auto", "triton", "torch"]

Result = TypeVar("Result")
log = logging.getLogger(__name__)
# one self-check at a time: two would compete for the device and its memory, and the second waits for an answer
_CHECKING = threading.Lock()
TRITON_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def chosen(
    kernel: str,
    implementation: str,
    device: torch.device,
    dtype: torch.dtype,
    obstacle: str | None = None,
) -> str:
    """`triton` or `torch` for inputs on a device; `obstacle` is why no kernel supports them, if so.

    While torch.compile traces a graph, the answer becomes a constant of it. ValueError for an unknown
    implementation, and if `triton` is requested but cannot run.
    """
    if torch.compiler.is_compiling():
        from reca_kernels import traced

        return traced.constant(_chosen, kernel, implementation, device, dtype, obstacle)
    return _chosen(kernel, implementation, device, dtype, obstacle)


def _chosen(
    kernel: str,
    implementation: str,
    device: torch.device,
    dtype: torch.dtype,
    obstacle: str | None,
) -> str:
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation is {implementation!r}; choose one of: {', '.join(get_args(Implementation))}"
        )
    if implementation == "torch":
        return "torch"
    if obstacle is None and dtype not in TRITON_TYPES:
        obstacle = f"there is no kernel for {dtype}"
    if implementation == "triton":
        if problem := obstacle or cannot_run(device):
            raise ValueError(f"{kernel}: implementation 'triton' cannot run: {problem}; use 'auto'")
        return "triton"
    index = gpu_index(device)
    if obstacle is None and index is not None:
        choice, _ = automatic(kernel, index)
        return choice
    _log_once(kernel, "torch", obstacle or f"the tensors are on {device.type}")
    return "torch"


def automatic(kernel: str, index: int) -> tuple[str, str]:
    """What `auto` chooses on CUDA device `index`, and why: a kernel must match its reference first.

    The self-check runs once per process, kernel and device, however many threads ask, and is logged. It must not
    depend on the state of the first caller: inside a checkpointed block its saved tensors would be counted as the
    block's, and under `no_grad` or `inference_mode` it could not compare gradients.
    """
    with _CHECKING:
        return _automatic(kernel, index)


def forget() -> None:
    """Let the next call of each kernel check it again."""
    _automatic.cache_clear()
    _log_once.cache_clear()


@cache
def _automatic(kernel: str, index: int) -> tuple[str, str]:
    device = torch.device("cuda", index)
    reason = cannot_run(device)
    if reason is None and interpreted():
        reason = "TRITON_INTERPRET is 1, which is for tests"
    if reason is None:
        try:
            reason = isolated(lambda: selfcheck.first_difference(kernel, device))
        except Exception as error:  # a failing compiler or driver must not stop a run
            reason = f"its self-check failed: {type(error).__name__}: {error}"
        if reason is not None:
            log.warning("%s: falling back to torch: %s", kernel, reason)
    choice = ("torch", reason) if reason else ("triton", "it matches its reference on this device")
    _log_once(kernel, *choice)
    return choice


def isolated(function: Callable[[], Result]) -> Result:
    """Run `function()` in a new thread: grad mode, autocast, saved-tensor hooks, dispatch modes, the
    default device and the current CUDA device and stream have their defaults there.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="reca_kernels") as thread:
        return thread.submit(function).result()


@cache
def _log_once(kernel: str, choice: str, reason: str) -> None:
    log.info("%s: %s, because %s", kernel, choice, reason)
