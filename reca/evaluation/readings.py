"""Doubtful replies: scored by the published rule, but counted and shown next to every score.

A published rule may use only a part of a reply (two scales of three, the 8 of `8.5`), or parse a different answer than
the careful reader does. Scores stay comparable with published ones, and the counts show how far they depend on such
replies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

INCOMPLETE = "incomplete"  # fewer numbers than requested
INEXACT = "inexact"  # the parsed number is only a part of the written one, or one of several
DIFFERENT = "read differently"  # the published and the careful reader find different answers
JUDGED = (INCOMPLETE, INEXACT)

MEANING = {
    INCOMPLETE: "replies with fewer scores than requested",
    INEXACT: "replies of which the published rule parses a part of a number, or one of several",
    DIFFERENT: "replies in which the published and the careful reader find different answers",
}
# What may follow the first digit of a longer expression: 10, 2.5, 1e9, 1_000, 1\u00bd, 4/5, 1-2, 1~2, 1 to 2, 1 and 2,
# 8 out of 10, 0 1 2, 85 %; but not the start of an enumeration (`2 1. Realism`).
_GOES_ON = re.compile(
    r"\d|[.,_]\d|e[+-]?\d|[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2150-\u218f]"
    r"|\s*(?:[/~\uff5e\u2010-\u2015-]|to\b|or\b|and\b|out of\b)\s*\d|[^\S\n]+\d(?![.)]|\w)|\s*%",
    re.IGNORECASE,
)


def goes_on(text: str, end: int) -> bool:
    """Whether the number that a rule parsed up to `end` continues in the text, or is part of a ratio or range."""
    return _GOES_ON.match(text, end) is not None


def tally(kinds: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Ids by kind of doubt, from (id, doubts) pairs; kinds without any id have an empty list."""
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, doubts in rows:
        for doubt in doubts:
            found[doubt].append(name)
    return found


def of_verdicts(
    verdicts: Mapping[str, tuple[str, str | None]], doubts: Callable[[str], Iterable[str]]
) -> dict[str, list[str]]:
    """The ids of a judge's doubtful replies by kind; `doubts` returns the kinds of one reply."""
    replies = [(name, r) for name, (s, r) in verdicts.items() if s == "reply" and r is not None]
    return tally(JUDGED, ((name, doubts(reply)) for name, reply in replies))


def counts(scores: Mapping[str, Any]) -> dict[str, int]:
    """The number of doubtful replies in a `scores.json`, by kind; empty for benchmarks without replies."""
    return {kind: one["count"] for kind, one in scores.get("readings", {}).items()}


def text(counts: Mapping[str, int]) -> str:
    """Nonzero counts as text: `2 incomplete, 1 inexact`."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
