"""Lines and small records with a checksum (the seal) of their own bytes, so that damaged ones are detected.

    {"step": 1, "loss": {"i2t": 2.5}, "seal": "0f3a9c51d2e47b86"}

Files that are written incrementally (step logs, saved rows, judge ledgers, sidecars) have no manifest yet. Each of
their lines is a JSON object whose last key has the first 16 hex digits of the sha256 of the line without that key. Any
changed byte counts as damage, even if the parsed value is the same. A seal detects accidents, not deliberate changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

SEAL = "seal"
DIGITS = 16
_TAIL = re.compile(rb', "seal": "([0-9a-f]{%d})"\}' % DIGITS)
_LENGTH = len(', "seal": ""}') + DIGITS


def seal(value: Mapping[str, Any]) -> str:
    """One line of ASCII JSON (no line end) that ends in its seal; ValueError for NaN, infinities and no content."""
    if not value or SEAL in value:
        raise ValueError(f"cannot seal {dict(value)!r}: it must have keys, and none named {SEAL!r}")
    body = json.dumps(dict(value), allow_nan=False)
    return f'{body[:-1]}, "{SEAL}": "{_digest(body.encode())}"}}'


def unseal(line: bytes) -> dict[str, Any] | None:
    """What was sealed; None if a byte of the line differs from what `seal` wrote."""
    tail = _TAIL.fullmatch(line, max(0, len(line) - _LENGTH))
    if tail is None:
        return None
    body = line[: tail.start()] + b"}"
    return _object(body) if _digest(body).encode() == tail[1] else None


def holds_seal(piece: bytes) -> bool:
    """Whether a seal lies anywhere in it. What a killed writer left of a line holds none: it is written last."""
    return _TAIL.search(piece) is not None  # a text cannot imitate it: JSON escapes its quotes


def begins_like(piece: bytes, key: str) -> bool:
    """Whether what has no line end may be the start of a line whose first key is `key`; another file's text is not."""
    start = f'{{"{key}": "'.encode()
    return piece[: len(start)] == start[: len(piece)]


def unsealed(line: bytes, keys: Collection[str]) -> dict[str, Any] | None:
    """A line of an older reca, which wrote no seals: an object with no other than these keys; else None.

    A sealed line of which one byte is damaged is none of these: it still has a key too many, or is no JSON.
    """
    value = _object(line)
    return value if value is not None and value.keys() <= set(keys) else None


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:DIGITS]


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
