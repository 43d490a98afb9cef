"""The careful reader of answers: what a reply says, or None if it is ambiguous; it never guesses.

The published rules remain the default because the paper's numbers depend on them, although they parse `Answer: B` as A
(the first character) and `I cannot tell.` as yes. The benchmark option `reader: careful` selects this reader instead;
disagreements between the two are counted in either case. All patterns run in time linear in the length of the reply.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from reca.config.options import Reader

READERS = get_args(Reader)

_MARKUP = str.maketrans("", "", "*`#\u200b\ufeff")
_APOSTROPHES = str.maketrans("\u2019\u2018\u201c\u201d", "''\"\"")
_UNSURE = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable|unsure|uncertain|unclear|undetermined|sorry|impossible)\b"
    r"|\b(?:not|isn't|hard|difficult) (?:sure|certain|clear|possible|enough|to (?:say|tell|know|determine))\b"
    r"|\b(?:don't|do not|doesn't|does not) know\b|\bno (?:idea|way|answer|information|option)\b"
    r"|\u65e0\u6cd5|\u4e0d\u786e\u5b9a|\u4e0d\u77e5\u9053|\u62b1\u6b49",
    re.IGNORECASE,
)

# ---- letters ---------------------------------------------------------------------------------------
_ALONE = re.compile(r"[\s\"'(\[{<]*([A-Za-z])[\s\"')\]}>.:,;!]*")
_OPENING = re.compile(
    r"[(\[]([A-Za-z])[)\]]|([A-Za-z])(?:[).:](?!\w)|[,;](?!\w)|\s*\n|\s+[-\u2013]\s)"
)
_STATED = re.compile(
    r"(?i:\banswer|\bchoose|\bselect|\bpick|\bgo with|\u7b54\u6848|\u9009\u62e9?)"
    r"(?i:\s*(?:is|was|would be|should be|must be|to be|to this question is|option|choice|letter)\b|[\u662f\u4e3a])*"
    r"[\s:=\"'-]*[(\[{]?([A-Za-z])(?![A-Za-z0-9'])"
)
_STANDALONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")
_ARTICLE = re.compile(
    r"\s+(?!because|since|as\b|due\b|for\b|is\b|and\b|or\b)[a-z]"
)  # `A cat`, `I think`
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bnever|\brather than|\bexcept|\bruled? out)"
    r"(?: (?:be|choose|select|pick|the|a|an|answer|option|choice))*[\s(\[\"']*\Z",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"[\s)\]\"']*(?:is|was|are)(?:n't| not| wrong| incorrect| false)\b", re.IGNORECASE
)
_FURTHER = re.compile(r"[\s)\]}\"']*(?:or|and|/|&|,)\s*(?:option )?[(\[]?[A-Z](?![\w'])")
_CONCLUDED = re.compile(r"\b(?:final|so|therefore|thus|hence|actually|wait)\b", re.IGNORECASE)
_NEAR = 40  # characters of context before a match


def plain(reply: str) -> str:
    """The reply in Unicode compatibility form (full-width letters and brackets become ASCII), without markup."""
    return unicodedata.normalize("NFKC", reply).translate(_APOSTROPHES).translate(_MARKUP).strip()


def letter(reply: str, options: Mapping[str, str]) -> str | None:
    """The option that a reply chooses, by letter or else by text; None if it chooses none or several."""
    text = plain(reply)
    alone = _ALONE.fullmatch(text)
    if alone:
        return _known(alone[1], options)
    texts = {name: plain(option).lower().rstrip(".") for name, option in options.items()}
    whole = [
        name for name, option in texts.items() if option and option == text.lower().rstrip(".!")
    ]
    if whole:
        return whole[0] if len(whole) == 1 else None
    if any(_FURTHER.match(text, m.end()) for m in _STATED.finditer(text) if m[1].isupper()):
        return None
    named = {name for name in (_stated(text, options), _opening(text, options)) if name}
    if named:
        return named.pop() if len(named) == 1 else None
    if _UNSURE.search(text):
        return None
    masked, mentioned = _texts_in(text, texts)
    letters = {n for n in _mentions(_STANDALONE, masked, options)} or mentioned
    return letters.pop() if len(letters) == 1 else None


def _known(name: str, options: Mapping[str, str]) -> str | None:
    return next((form for form in (name, name.upper()) if form in options), None)


def _mentions(pattern: re.Pattern[str], text: str, options: Mapping[str, str]) -> Iterator[str]:
    """The option letters that a pattern finds, in order; articles, pronouns and negated letters are skipped."""
    for match in pattern.finditer(text):
        name, end = match[1], match.end(1)
        is_word = name in "AI" and _ARTICLE.match(text, end)
        is_lone = name.isupper() or re.match(r"[\s)\]}\"'.,;:!]*(?:\Z|\n)", text[end : end + _NEAR])
        denied = _DENIED.match(text, end) or _NEGATED.search(
            text[max(0, match.start() - _NEAR) : match.start()]
        )
        if is_lone and not is_word and not denied and (known := _known(name, options)):
            yield known


def _stated(text: str, options: Mapping[str, str]) -> str | None:
    """The letter after `answer is` or a similar phrase; of several, the last one if it is a conclusion."""
    found = list(_mentions(_STATED, text, options))
    if len(set(found)) <= 1:
        return found[0] if found else None
    last = list(_STATED.finditer(text))[-1]
    return found[-1] if _CONCLUDED.search(text[max(0, last.start() - _NEAR) : last.end()]) else None


def _opening(text: str, options: Mapping[str, str]) -> str | None:
    match = _OPENING.match(text)
    if match is None or _FURTHER.match(text, match.end()) or _FURTHER.match(text, match.end() - 1):
        return None
    name = match[1] or match[2]
    return _known(name, options)


def _texts_in(text: str, texts: Mapping[str, str]) -> tuple[str, set[str]]:
    """The text with all option texts blanked out, and the options it names; a longer option hides those inside it."""
    lower, found = text.lower(), set()
    if len(lower) != len(text):  # a letter with a longer lower-case form would shift the positions
        return text, set()
    for name, option in sorted(texts.items(), key=lambda row: -len(row[1])):
        if len(option) < 2 and not option.isdigit():
            continue
        for match in re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)", lower):
            start, end = match.span()
            if not _NEGATED.search(lower[max(0, start - _NEAR) : start]):
                found.add(name)
                found |= {other for other, same in texts.items() if same == option}
            text = text[:start] + " " * (end - start) + text[end:]
        lower = text.lower()
    return text, found


# ---- yes and no --------------------------------------------------------------------------------------
_FIRST = re.compile(r"[\W_]*(yes|yeah|yep|true|no|nope|false)\b", re.IGNORECASE)
_NO_WHAT = re.compile(r"\s+(?:idea|way|answer|information|doubt|problem)\b", re.IGNORECASE)
_BOTH = re.compile(r"\W*(?:or|and)?\W*(?:yes|no)\b", re.IGNORECASE)
_SAID = re.compile(r"\banswer(?:\s+is)?\W*(yes|no)\b", re.IGNORECASE)
_ABSENT = re.compile(
    r"\A\W*not\b|\bno\b(?! doubt\b| problem\b)|\bthere(?: is|'s| are)(?: not|n't)\b"
    r"|\b(?:is|are)(?: not|n't) (?:any|a|an|in|there|visible|present|shown|depicted)\b"
    r"|\bdo(?:es)?(?: not|n't) (?:contain|show|have|include|depict|feature|think so)\b"
    r"|\b(?:do not|don't|cannot|can't|can not) see\b"
    r"|\A\W*(?:\u4e0d\u662f|\u6ca1|\u5426|\u4e0d\u5b58\u5728)",
    re.IGNORECASE,
)
_PRESENT = re.compile(
    r"\byes\b|\A\W*(?:there (?:is|are)|there's|i (?:can )?see)\b|\A\W*(?:\u662f(?!\u5426)|\u6709|\u5bf9|\u5b58\u5728)",
    re.IGNORECASE,
)
_SEES_NOT = re.compile(r"\b(?:cannot|can't|can not) see\b", re.IGNORECASE)
_YES = ("yes", "yeah", "yep", "true")


def yes_or_no(reply: str) -> Literal["yes", "no"] | None:
    """The answer of a reply to a yes/no question; None for both, for neither, and if it is unsure."""
    text = plain(reply)
    if text.lower() in ("y", "n"):
        return "yes" if text.lower() == "y" else "no"
    first = _FIRST.match(text)
    if first and not _NO_WHAT.match(text, first.end()):
        if _BOTH.match(text, first.end()):
            return None
        return "yes" if first[1].lower() in _YES else "no"
    said = {match[1].lower() for match in _SAID.finditer(text)}
    if said:
        return None if len(said) > 1 else "yes" if "yes" in said else "no"
    if _UNSURE.search(_SEES_NOT.sub("do not see", text)):
        return None
    absent, present = _ABSENT.search(text), _PRESENT.search(text)
    if absent and present and re.search(r"\byes\b", text, re.IGNORECASE):
        return None
    return "no" if absent else "yes" if present else None


# ---- short answers -----------------------------------------------------------------------------------
_PREFIX = re.compile(r"(?:the\s+)?(?:final\s+)?answer\s*(?:is\b|:)[\s:]*", re.IGNORECASE)


def same_answer(reply: str, truth: str) -> bool:
    """Whether a short answer is correct, ignoring markup, `The answer is`, articles, numerals and punctuation."""
    from reca.evaluation.vqa_text import normalise

    if truth.strip().lower() in ("yes", "no"):
        return yes_or_no(reply) == truth.strip().lower()
    text = plain(reply)
    prefix = _PREFIX.match(text)
    return normalise(text[prefix.end() :] if prefix else text) == normalise(plain(truth))
