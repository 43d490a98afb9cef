"""Doubtful replies: kept as the published rule reads them, but counted, and shown beside every score.

A published rule may take a part of a reply for the whole (two scales of three, the 8 of `8.5`), or find
another answer than a careful reader does. The numbers stay comparable; how far they rest on such replies
is part of the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

INCOMPLETE = "incomplete"  # fewer numbers than the judge was asked for
INEXACT = "inexact"  # the number that is read is not the one that is written, or one of several
DIFFERENT = "read differently"  # the published and the careful reader find different answers
JUDGED = (INCOMPLETE, INEXACT)

MEANING = {
    INCOMPLETE: "replies with fewer scores than the judge was asked for",
    INEXACT: "replies of which the published rule reads a part of a number, or one of several",
    DIFFERENT: "replies that the published and the careful reader take for different answers",
}
# What may follow a digit of a larger statement: 10, 2.5, 1e9, 1_000, 1\u00bd, 4/5, 1-2, 1~2, 1 to 2, 1 and 2,
# 8 out of 10, 0 1 2, 85 %; a digit that begins an enumeration (`2 1. Realism`) is none of it.
_GOES_ON = re.compile(
    r"\d|[.,_]\d|e[+-]?\d|[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2150-\u218f]"
    r"|\s*(?:[/~\uff5e\u2010-\u2015-]|to\b|or\b|and\b|out of\b)\s*\d|[^\S\n]+\d(?![.)]|\w)|\s*%",
    re.IGNORECASE,
)


def goes_on(text: str, end: int) -> bool:
    """Whether the number that a rule read up to `end` goes on in the text, or is one side of a ratio or range."""
    return _GOES_ON.match(text, end) is not None


def tally(kinds: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> dict[str, list[str]]:
    """Ids by kind of doubt, from (id, its doubts); every kind of `kinds` is there, with an empty list for none."""
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, doubts in rows:
        for doubt in doubts:
            found[doubt].append(name)
    return found


def of_verdicts(
    verdicts: Mapping[str, tuple[str, str | None]], doubts: Callable[[str], Iterable[str]]
) -> dict[str, list[str]]:
    """The doubtful replies of a judge by kind; `doubts` gives the kinds of one reply."""
    replies = [(name, r) for name, (s, r) in verdicts.items() if s == "reply" and r is not None]
    return tally(JUDGED, ((name, doubts(reply)) for name, reply in replies))


def counts(scores: Mapping[str, Any]) -> dict[str, int]:
    """How many doubtful replies a `scores.json` has, by kind; empty where its benchmark has no replies to doubt."""
    return {kind: one["count"] for kind, one in scores.get("readings", {}).items()}


def text(counts: Mapping[str, int]) -> str:
    """Counts as text, kinds without any left out: `2 incomplete, 1 inexact`."""
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
