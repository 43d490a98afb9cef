"""Fingerprints of frozen encoders: a hash of weights and options, cached until a weight changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> str:
    """Hex sha256 of JSON-serialisable options and of the names, dtypes, shapes and bytes of tensors."""
    hasher = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


class Fingerprints:
    """Cached digests by options: they are requested per batch of images, and hashing gigabytes takes seconds."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[tuple[int, ...], str]] = {}

    def of(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> str:
        """The `digest`, recomputed only if a tensor was modified or replaced."""
        key = (json.dumps(options, sort_keys=True), *sorted(tensors))
        versions = tuple(n for t in tensors.values() for n in (t.data_ptr(), t._version))
        if key not in self._kept or self._kept[key][0] != versions:
            self._kept[key] = (versions, digest(tensors, options))
        return self._kept[key][1]
