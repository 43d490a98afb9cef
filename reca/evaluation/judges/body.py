"""What an endpoint's body says: the reply, its model and the tokens it cost, whatever else the body holds.

A body comes from a stranger: it may be nested to exhaust the stack, count tokens below zero or in thousands of
digits, or repeat the key. A reply that was paid for is always given back, readable or not, so that its cost counts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

DEEPEST = 64  # levels of a body that are read; a chat completion has about six
LONGEST_NUMBER = 300  # characters; a longer one is no number of tokens, nor a finite one
MOST_TOKENS = 10**9  # of one reply
COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens")
# An unfinished string ends with the text: tried again from each of its quotes it would take for ever.
_STEPS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class NoCompletion(Exception):
    """A body that is no chat completion and says of no cost."""


@dataclass(frozen=True)
class Reply:
    """A raw reply, or a refusal with what was said."""

    text: str
    refused: bool
    model: str
    usage: dict[str, int]


def reply_of(content: bytes) -> Reply:
    """The reply in a body of chat completions; NoCompletion where the body has no such form and counts no tokens.

    An empty text is a reply that was paid for (a model that spends its length on thinking), and so is a body that
    counts tokens but has no readable message: neither has a score, but the cost counts.
    """
    found = _loaded(content)
    usage = usage_of(found.get("usage"))
    model = found.get("model", "")
    name = model if isinstance(model, str) else ""
    try:
        choice = found["choices"][0]
        text, refused = _said(choice, choice["message"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        if not any(usage.values()):
            raise NoCompletion(
                f"a body that is no chat completion ({type(error).__name__})"
            ) from None
        return Reply("", False, name, usage)
    return Reply(text, refused, name, usage)


def _said(choice: Any, message: Any) -> tuple[str, bool]:
    """The text, and whether it is a refusal; TypeError for a text that is none."""
    text, refusal = message.get("content"), message.get("refusal")
    if refusal or choice.get("finish_reason") == "content_filter":
        said = next((part for part in (refusal, text) if isinstance(part, str) and part), "")
        return said or "content filter", True
    if isinstance(text, list):  # some endpoints answer in parts
        parts = [part.get("text", "") for part in text if isinstance(part, dict)]
        text = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(text, str | None):
        raise TypeError("a text that is none")
    return text or "", False


def usage_of(found: Any) -> dict[str, int]:
    """The counts of tokens, of the known names alone; what is below zero, beyond reason or no count is left out."""
    named = {name: found.get(name) for name in COUNTED} if isinstance(found, dict) else {}
    return {k: n for k, n in named.items() if type(n) is int and 0 <= n <= MOST_TOKENS}


def _loaded(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(pruned(content), parse_int=_integer, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise NoCompletion(f"a body that is no JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise NoCompletion(f"a body that is no chat completion ({type(found).__name__})")
    return found


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= LONGEST_NUMBER else None


def pruned(content: bytes, deepest: int = DEEPEST) -> bytes:
    """A JSON text with `null` in place of every list and object below the deepest level: linear, without recursion."""
    kept, level, begin = [], 0, 0
    for step in _STEPS.finditer(content):
        sign = step[0]
        if sign in (b"[", b"{"):
            level += 1
            if level == deepest + 1:
                kept.append(content[begin : step.start()] + b"null")
        elif sign in (b"]", b"}"):
            level -= 1
            if level == deepest:
                begin = step.end()
    if level > deepest:  # cut short below the deepest level
        return b"".join(kept)
    return b"".join([*kept, content[begin:]])
