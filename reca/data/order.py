"""The order of samples: a pure function of (seed, position), independent of workers and ranks.

Global position p is sample `epoch_order(n, seed, p // n)[p % n]`. Rank r of W reads the
positions with p % W == r, so W ranks together read each sample of an epoch once, and the state is
a single integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from reca.core.rng import numpy_generator, seed_of

Order = Literal["own", "published"]


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of range(n) for `epoch`: int64 [n], read-only."""
    if n < 1:
        raise ValueError(f"cannot order {n} samples: the data set is empty")
    order = numpy_generator("epoch_order", seed, epoch).permutation(n)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Cursor:
    """Position of a run in its infinite stream; `position` counts the samples of all ranks."""

    seed: int
    position: int = 0

    def index(self, n: int) -> int:
        """The sample at this position of a data set of `n`."""
        epoch, offset = divmod(self.position, n)
        return int(epoch_order(n, self.seed, epoch)[offset])

    def moved(self, samples: int) -> Cursor:
        """The cursor advanced by `samples` positions."""
        return Cursor(self.seed, self.position + samples)

    def of_rank(self, rank: int, world: int) -> Cursor:
        """The first position, from this one, that belongs to `rank` of `world`."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in 0..{world - 1}")
        return self.moved((rank - self.position) % world)

    def take(self, n: int, count: int, rank: int = 0, world: int = 1) -> tuple[list[int], Cursor]:
        """The next `count` samples of this rank, and the cursor after every rank has taken that many.

        Any W consecutive positions contain one of each rank, so all ranks return the same cursor.
        """
        start = self.of_rank(rank, world)
        indices = [start.moved(step * world).index(n) for step in range(count)]
        return indices, self.moved(count * world)


@lru_cache(maxsize=4)
def _published_epochs(n: int, seed: int, epochs: int) -> np.ndarray:
    """The first `epochs` permutations of torch's generator, concatenated: int64 [epochs * n]."""
    import torch

    drawn = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(n, generator=drawn) for _ in range(epochs)]).numpy()


def published_order(n: int, seed: int, positions: Sequence[int]) -> list[int]:
    """Samples at positions of the official Harmon stream (docs/reference/harmon.md e).

    It consists of endless permutations of one torch generator, with the same seed for every source.
    """
    epochs = max(positions, default=0) // n + 1
    stream = _published_epochs(n, seed, epochs)
    return [int(stream[position]) for position in positions]


# ---- which samples a run reads at all ----------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Visits:
    """What runs read of one data set: the first `samples` positions of each seed's stream.

    `stream` names the data in the key of the own order; the published one has the same for every source.
    """

    order: Order
    stream: str
    seeds: tuple[int, ...]
    samples: int

    def of(self, n: int) -> list[int]:
        """The samples, out of `n`, that are read: ascending, each once."""
        if self.samples >= n:  # at least one complete epoch
            return list(range(n))
        read = np.zeros(n, dtype=bool)
        for seed in self.seeds:
            read[self._epoch(n, seed)[: self.samples]] = True
        return [int(index) for index in np.flatnonzero(read)]

    def _epoch(self, n: int, seed: int) -> np.ndarray:
        if self.order == "published":
            return _published_epochs(n, seed, 1)
        return epoch_order(n, seed_of(seed, "order", self.stream), 0)

    def missing(self, wanted: Visits) -> str | None:
        """What of `wanted` is not read, in words; None if all is."""
        if (self.order, self.stream) != (wanted.order, wanted.stream):
            return f"order {wanted.order!r} of {wanted.stream!r}"
        if strangers := set(wanted.seeds) - set(self.seeds):
            return f"seed {min(strangers)}"
        if wanted.samples > self.samples:
            return f"{wanted.samples:,} samples"
        return None
