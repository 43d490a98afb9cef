"""Normalisation of VQA answers: numerals, articles, punctuation, contractions.

`soft_accuracy` against ten human answers is the metric of the VQA challenge; GQA's strict match is in `gqa.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORDS = "zero one two three four five six seven eight nine ten"
_NUMERALS = {"none": "0"} | {word: str(i) for i, word in enumerate(_WORDS.split(" "))}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Answers often omit the apostrophe. Contractions that are other words without it (its, were, well, hell, shell, shed,
# ill, id, wed) are not listed.
_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd how'd
how'll i'm i've isn't it'd it'll let's might've mightn't must've mustn't needn't shan't
should've shouldn't somebody'll someone'd something'd that'd that's there'd there're
there's they'd they'll they're they've wasn't we've weren't what'll what're what's what've
when's where'd where's where've who'd who'll who's who've why'll why're why's won't
would've wouldn't y'all you'd you'll you're you've
"""
_RESTORED = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}


def normalise(answer: str) -> str:
    """The normalised form of an answer."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = _without_punctuation(text)
    words = (_NUMERALS.get(word, word) for word in text.split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Remove marks that occur next to a space, replace others by a space, and keep periods only inside numbers."""
    out = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_blank else " ")
    return re.sub(r"(?<!\d)\.(?!\d)", "", out)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """Mean, over leaving out each human answer once, of min(1, number of the others that agree / 3)."""
    truths = [normalise(text) for text in given]
    agreeing = Counter(truths)[normalise(answer)]
    if not agreeing:
        return 0.0
    without, same = min(1.0, (agreeing - 1) / 3), min(1.0, agreeing / 3)
    return (agreeing * without + (len(truths) - agreeing) * same) / len(truths)
