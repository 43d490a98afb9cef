"""Counter-based randomness: every generator is a pure function of its key, so no RNG state is ever saved.

The house key is `(run seed, step, rank, purpose)`; drawing samples uses `(benchmark, prompt id, sample index, seed)`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*key: int | str) -> int:
    """Hash a key to a 63-bit seed; parts are typed and separated, so (1, "2") and ("1", 2) and ("12",) differ."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU torch generator seeded from `key`; draws are made on the CPU so that devices do not change them."""
    import torch

    return torch.Generator().manual_seed(seed_of(*key))


def numpy_generator(*key: int | str) -> np.random.Generator:
    """A numpy PCG64 generator seeded from `key`."""
    return np.random.Generator(np.random.PCG64(seed_of(*key)))
