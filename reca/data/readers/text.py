"""Validation of the text of a sample (captions, questions, answers), shared by all readers.

A text is a non-blank Unicode string. Anything else (a list, a number, null, blanks, bytes that are not
UTF-8) is rejected with the sample's name, never converted to text: the model would learn to say
"None".
"""

from __future__ import annotations

from typing import Any

from reca.core.documents import json_value, kind_of
from reca.core.unreadable import UnreadableText
from reca.data.readers.names import is_unicode

MARK = "\ufeff"  # a byte order mark, which some editors write


def text_of(value: Any, name: str, what: str = "the caption") -> str:
    """`value` as a text of the sample `name`, without a byte order mark; bytes are decoded as UTF-8.

    Raises:
        UnreadableText: not a text; `what` names the field.
    """
    if isinstance(value, bytes):
        value = _utf8(value, name, what)
    if not isinstance(value, str):
        raise UnreadableText(name, f"{what} is {kind_of(value)}, not a text")
    text = value.removeprefix(MARK)
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise UnreadableText(name, f"{what} is empty or blank")
    if not is_unicode(text):
        raise UnreadableText(name, f"{what} holds half a letter (a lone surrogate)")
    return text


def text_in_file(data: bytes, name: str, what: str) -> str:
    """The text of a file: as `text_of`, stripped."""
    return text_of(data, name, what).strip()


def caption_in_record(
    record: dict[str, Any], keys: tuple[str, ...], name: str, what: str
) -> str | None:
    """Remove the caption from a record, under the first of `keys` that it has; None if it has none.

    A key that is present must hold a text, not null: an image without a caption has no such key.
    """
    found = next((key for key in keys if key in record), None)
    return None if found is None else text_of(record.pop(found), name, f"{found!r} of {what}")


def record_in_file(data: bytes | str, name: str, what: str) -> dict[str, Any]:
    """The JSON object in a file (or line) `what` of the sample `name`."""
    try:
        value = json_value(data, what)
    except ValueError as fault:
        reason = str(fault).removeprefix(f"{what}: ")
        raise UnreadableText(name, f"{what}: expected a JSON object ({reason})") from fault
    if not isinstance(value, dict):
        raise UnreadableText(name, f"{what}: expected a JSON object, found {kind_of(value)}")
    return value


def _utf8(data: bytes, name: str, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise UnreadableText(name, f"{what} is not UTF-8 (byte {fault.start})") from fault
