"""Parsing of an endpoint's response body: the reply, the model and the number of tokens.

The body is untrusted input: it may be nested deeply enough to exhaust the stack, give token counts that are negative or
have thousands of digits, or echo the API key. A reply that was paid for is always returned, readable or not, so that
its cost is counted.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

DEEPEST = 64  # nesting levels that are parsed; a chat completion has about six
LONGEST_NUMBER = 300  # characters; longer integers exceed any float
MOST_TOKENS = 10**9  # per reply
COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens")
# An unterminated string extends to the end of the text; retrying from each of its quotes would be quadratic.
_STEPS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class NoCompletion(Exception):
    """A body that is not a chat completion and reports no cost."""


@dataclass(frozen=True)
class Reply:
    """A raw reply, or a refusal with its text."""

    text: str
    refused: bool
    model: str
    usage: dict[str, int]


def reply_of(content: bytes) -> Reply:
    """The reply in the body of a chat completion; NoCompletion if the body is not one and reports no tokens.

    An empty text (from a model that used up its length on thinking) and a body that reports tokens without a readable
    message are replies that were paid for: they have no score, but their cost is counted.
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
                f"the body is not a chat completion ({type(error).__name__})"
            ) from None
        return Reply("", False, name, usage)
    return Reply(text, refused, name, usage)


def _said(choice: Any, message: Any) -> tuple[str, bool]:
    """The text, and whether it is a refusal; TypeError if the content is not a text."""
    text, refusal = message.get("content"), message.get("refusal")
    if refusal or choice.get("finish_reason") == "content_filter":
        said = next((part for part in (refusal, text) if isinstance(part, str) and part), "")
        return said or "content filter", True
    if isinstance(text, list):  # some endpoints answer in parts
        parts = [part.get("text", "") for part in text if isinstance(part, dict)]
        text = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(text, str | None):
        raise TypeError("the content is not a text")
    return text or "", False


def usage_of(found: Any) -> dict[str, int]:
    """The token counts under the known names; values that are negative, implausible or not integers are dropped."""
    named = {name: found.get(name) for name in COUNTED} if isinstance(found, dict) else {}
    return {k: n for k, n in named.items() if type(n) is int and 0 <= n <= MOST_TOKENS}


def _loaded(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(pruned(content), parse_int=_integer, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise NoCompletion(f"the body is not JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise NoCompletion(f"the body is not a chat completion ({type(found).__name__})")
    return found


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= LONGEST_NUMBER else None


def pruned(content: bytes, deepest: int = DEEPEST) -> bytes:
    """A JSON text with every list and object below the deepest level replaced by `null`; linear, without recursion."""
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
    if level > deepest:  # truncated below the deepest level
        return b"".join(kept)
    return b"".join([*kept, content[begin:]])
