"""Validation of file names in a data set's text: relative, inside the folder, and valid on Linux."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from reca.core.documents import kind_of
from reca.core.unreadable import UnreadableText

MAX_PART = 255  # bytes of one name, on all Linux file systems
MAX_PATH = 4095  # bytes of a complete path
_SHOWN = 60


def relative_name(value: Any, what: str) -> str:
    """`value` as a normalised relative path; ValueError, starting with `what`, for an invalid one."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {kind_of(value)}, not a file's name")
    path = PurePosixPath(value)
    shown = repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
    if path.is_absolute() or ".." in path.parts or "\0" in value:
        raise ValueError(f"{what} {shown} leaves the image folder")
    if not path.parts:
        raise ValueError(f"{what} is empty")
    if not is_unicode(value):
        raise ValueError(f"{what} {shown} holds half a letter (a lone surrogate)")
    longest = max(len(part.encode()) for part in path.parts)
    if longest > MAX_PART or len(value.encode()) > MAX_PATH:
        raise ValueError(f"{what} {shown} is too long for a file's name ({longest} bytes)")
    return path.as_posix()


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, from JSON escapes or from file names that are not UTF-8."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_unicode(name: str) -> None:
    """Raise UnreadableText for a file whose name is not UTF-8, which an index cannot store."""
    if not is_unicode(name):
        raise UnreadableText(ascii(name), "the file's name is not UTF-8; rename it")
