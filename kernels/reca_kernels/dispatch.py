"""Which implementation runs: Triton where the device passed the self-check, torch elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from reca_kernels import selfcheck
from reca_kernels.runtime import cannot_run, gpu_index, interpreted

Implementation = Literal["auto", "triton", "torch"]

Result = TypeVar("Result")
log = logging.getLogger(__name__)
_CHECKING = threading.Lock()  # one comparison at a time: two would share the device and its memory
TRITON_TYPES = (torch.float16, torch.bfloat16, torch.float32)


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
    index = gpu_index(example.device)
    if obstacle is None and index is not None:
        choice, _ = automatic(kernel, index)
        return choice
    _log_once(kernel, "torch", obstacle or f"the tensors are on {example.device.type}")
    return "torch"


@cache
def automatic(kernel: str, index: int) -> tuple[str, str]:
    """What `auto` takes on CUDA device `index`, and why: the kernel must first match its reference.

    The comparison runs once per process, kernel and device, and is logged. It must not see what the
    first caller happens to be doing: inside a checkpointed block its own saved tensors would be counted
    as the block's, and under `no_grad` or `inference_mode` it could compare no gradient.
    """
    device = torch.device("cuda", index)
    reason = cannot_run(device)
    if reason is None and interpreted():
        reason = "TRITON_INTERPRET is 1, which is for tests"
    if reason is None:
        try:
            with _CHECKING:
                reason = isolated(lambda: selfcheck.first_difference(kernel, device))
        except Exception as error:  # a compiler or driver that fails must not stop a run
            reason = f"its self-check failed: {type(error).__name__}: {error}"
        if reason is not None:
            log.warning("%s: falling back to torch: %s", kernel, reason)
    choice = ("torch", reason) if reason else ("triton", "it matches its reference on this device")
    _log_once(kernel, *choice)
    return choice


def isolated(function: Callable[[], Result]) -> Result:
    """`function()` in a thread of its own, where grad mode, autocast, saved-tensor hooks, dispatch
    modes, the default device and the current CUDA device and stream are the defaults.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="reca_kernels") as thread:
        return thread.submit(function).result()


@cache
def _log_once(kernel: str, choice: str, reason: str) -> None:
    log.info("%s: %s, because %s", kernel, choice, reason)
