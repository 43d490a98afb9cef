"""Random damage to bytes, as disks, interrupted copies and attackers make it."""

from __future__ import annotations

import random

BLOCK = 512


def damaged(data: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """A changed copy of `data`; changes of single bytes lie in its first `head` bytes, where these are given."""
    harmed = bytearray(data)
    end = min(len(harmed), head or len(harmed))
    kind = rng.choice(["bytes", "bytes", "number", "cut", "zeros", "twice", "insert"])
    at = rng.randrange(end)
    if kind == "bytes":
        for _ in range(rng.randint(1, 8)):
            harmed[rng.randrange(end)] ^= rng.randrange(1, 256)
    elif kind == "number":  # what a length or an offset becomes
        harmed[at : at + 4] = rng.choice(
            [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", bytes(4), b"9999"]
        )
    elif kind == "cut":
        del harmed[at:]
    elif kind == "zeros":
        harmed[at : at + BLOCK] = bytes(len(harmed[at : at + BLOCK]))
    elif kind == "twice":
        harmed[at:at] = harmed[at : at + BLOCK]
    else:
        harmed[at:at] = rng.randbytes(rng.randint(1, BLOCK))
    return bytes(harmed)
