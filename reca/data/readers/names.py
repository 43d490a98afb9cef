"""Names of files that a data set's own text gives: relative, inside of the folder, and possible at all."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from reca.core.documents import kind_of
from reca.core.unreadable import UnreadableText

MAX_PART = 255  # bytes of one name, on every file system that Linux has
MAX_PATH = 4095  # bytes of a whole path
_SHOWN = 60


def relative_name(value: Any, what: str) -> str:
    """`value` as a normal relative path; ValueError, which begins with `what`, where no file can have it."""
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
    """Whether a text has no lone surrogates: half letters of JSON, or bytes of a file's name that are not UTF-8."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def check_unicode(name: str) -> None:
    """UnreadableText for a file whose own name is not UTF-8: no index could hold it."""
    if not is_unicode(name):
        raise UnreadableText(ascii(name), "the file's name is not UTF-8; rename it")
