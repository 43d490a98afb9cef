"""doctor: describe this machine, and check and report the implementation it will use for each kernel."""

from __future__ import annotations

import os
from argparse import Namespace

import torch
from reca_kernels import dispatch, runtime, selfcheck

from reca.core.artifacts import versions


def doctor(arguments: Namespace) -> int:
    """Print versions, devices with their memory, and the implementation of each kernel with its comparison.

    Returns the exit status: 1 if a kernel that could run here differs from its reference, else 0.
    """
    for package, version in versions().items():
        print(f"{package:13} {version}")
    print(f"{'cpu':13} {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    print(f"{'memory':13} {_gibibytes(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))}")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        print(f"{device!s:13} {_described(device)}")
    if devices:
        return max([_on_gpu(device) for device in devices])
    return _without_gpu()


def _on_gpu(device: torch.device) -> int:
    failed = 0
    for kernel in selfcheck.KERNELS:
        chosen, reason = dispatch.automatic(kernel, device.index)
        print(f"{kernel} on {device}: {chosen}, because {reason}")
        if runtime.cannot_run(device) is None:
            failed |= _compared(kernel, device)
    return failed


def _without_gpu() -> int:
    """Without a GPU the implementation is torch; with Triton's interpreter the kernels are compared nevertheless."""
    failed, device = 0, torch.device("cpu")
    for kernel in selfcheck.KERNELS:
        print(f"{kernel} on cpu: torch, because there is no GPU")
        if runtime.interpreted() and runtime.cannot_run(device) is None:
            failed |= _compared(kernel, device)
    if not runtime.interpreted():
        print("To compare the Triton kernels in their interpreter: TRITON_INTERPRET=1 reca doctor")
    return failed


def _compared(kernel: str, device: torch.device) -> int:
    """Print the worst quantity of the comparison per dtype; returns 1 if one exceeds its tolerance, else 0."""
    try:
        found = list(selfcheck.differences(kernel, device))
    except Exception as error:  # any error of a compiler or driver is part of the diagnosis
        print(f"  failed: {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    for dtype in dict.fromkeys(one.dtype for one in found):
        worst = max((one for one in found if one.dtype == dtype), key=lambda one: one.excess)
        verdict = "equal" if all(one.passed for one in found if one.dtype == dtype) else "DIFFERENT"
        print(
            f"  {dtype:9} {verdict}: {worst.quantity} errs by {worst.excess:.1e} more than plain "
            f"torch (allowed {worst.allowed:.0e})"
        )
    return int(not all(one.passed for one in found))


def _described(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{_gibibytes(total)} of memory, {_gibibytes(free)} free"
    )


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
