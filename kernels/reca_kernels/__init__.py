"""Kernels for the losses and the attention of unified multimodal models.

Imports nothing from `reca`. Each kernel is a function with `implementation="auto" | "triton" | "torch"`:
Triton on a GPU that passed the self-check, a memory-efficient torch implementation otherwise.
"""

from reca_kernels.dispatch import Implementation
from reca_kernels.layout import Kind, Layout
from reca_kernels.ops import block_attention, flow_matching_loss, linear_cross_entropy

__all__ = [
    "Implementation",
    "Kind",
    "Layout",
    "block_attention",
    "flow_matching_loss",
    "linear_cross_entropy",
]
__version__ = "0.1.0"
