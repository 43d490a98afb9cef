"""Samples that a data set holds and nobody can use: refused by name, counted, left out.

The reasons are stored in caches, so they are fixed words and what is in the file itself: no folder of
this machine, no address in memory, no text of a library that another release words differently.
"""

from __future__ import annotations


class UnreadableSample(ValueError):
    """A sample that is refused; the message names it and the reason."""

    what = "sample"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: unreadable {self.what}: {reason}")
        self.name = name
        self.reason = reason


class UnreadableImage(UnreadableSample):
    """A sample whose image cannot be used."""

    what = "image"


class UnreadableText(UnreadableSample):
    """A sample whose caption or conversation cannot be used."""

    what = "text"
