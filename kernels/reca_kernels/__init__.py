"""Kernels for the losses and the attention of unified multimodal models.

Imports nothing of `reca`. Each kernel is a function with `implementation="auto" | "triton" | "torch"`.
"""

__version__ = "0.1.0"
