"""Kernels for the losses and the attention of unified multimodal models.

Imports nothing of `reca`. Each is a function with `implementation="auto" | "triton" | "torch"`:
Triton on a GPU that passed a comparison with the reference, a lean torch implementation elsewhere.
"""

from reca_kernels.choice import Implementation
from reca_kernels.face import block_attention, flow_matching_loss, linear_cross_entropy
from reca_kernels.layout import Kind, Layout

__all__ = [
    "Implementation",
    "Kind",
    "Layout",
    "block_attention",
    "flow_matching_loss",
    "linear_cross_entropy",
]
__version__ = "0.1.0"
