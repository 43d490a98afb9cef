"""Whether a Triton kernel can run: facts about the device and the interpreter."""

from __future__ import annotations

import importlib.util
import os

import torch

MIN_CAPABILITY = (8, 0)  # Ampere: the tiles are tuned and compiled for sm_80 and later


def gpu_index(device: torch.device) -> int | None:
    """The CUDA index of a device (the current one if unspecified); None for other devices."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU (TRITON_INTERPRET=1)."""
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
        if capability < MIN_CAPABILITY:
            return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None
