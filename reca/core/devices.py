"""Where a model runs: the one rule for training, encoding, drawing and answering."""

from __future__ import annotations

import re
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

_NAMES = re.compile(r"auto|cpu|cuda(:\d+)?")
GIB = 2**30


def device_of(name: str = "auto") -> torch.device:
    """The device of a name: auto | cpu | cuda | cuda:N; auto and cuda take the first GPU that this process sees.

    Which GPUs it sees is for CUDA_VISIBLE_DEVICES to say, which Slurm sets for its jobs. ValueError for a name that
    is none of these, and for a GPU that is not here.
    """
    if not _NAMES.fullmatch(name):
        raise ValueError(f"device {name!r} is not known; choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        seen = f"PyTorch sees {count} GPUs here" if count else "PyTorch sees no GPU here"
        raise ValueError(f"device {name!r}: {seen}; choose cpu, or auto for what is there")
    return torch.device("cuda", number)


def placed(model: Model, device: str = "auto") -> Model:
    """The model itself, moved to a device (see `device_of`); ValueError if its memory does not hold the weights."""
    chosen = device_of(device)
    try:
        model.to(chosen)
    except torch.OutOfMemoryError as problem:
        size = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / GIB
        raise ValueError(
            f"device {chosen}: its free memory does not hold the model's {size:.1f} GiB; end what else runs there, "
            "or choose cpu or another GPU"
        ) from problem
    return model
