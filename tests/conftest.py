"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton loads."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["tests.faults.campaign"]
