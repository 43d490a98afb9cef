"""MMMU validation: multiple choice and short answers of 30 subjects (reference/benchmarks.md 8).

A multiple-choice reply without an option is wrong; the score with the official random choice, seeded per question, is
reported as well and can be selected. For a question about several images, a model that accepts several (BAGEL) is given
all of them in order, others only the first (`pictures_shown` in `scores.json`). The number of such questions is in the
notes, the accuracy without them in the summary.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.core.rng import numpy_generator
from reca.evaluation import careful, readings
from reca.evaluation.graded import Graded, by_category, interval, mean
from reca.evaluation.reading import Tables, answered, demand_option, hub_rows
from reca.evaluation.tasks.mmbench import letter
from reca.inference.items import Question

VERSION = "val, official rules"
ROLES = ("questions",)
TABLES = Tables("*", "validation")  # one configuration per subject; ids contain its name
LETTERS = "ABCDEFGHI"
NEEDED = ("id", "question", "options", "answer")  # columns of the hub's tables
CHOICE_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
OPEN_SUFFIX = "\nAnswer the question using a single word or phrase."
Value = str | float
_STRIPPED = ",.!?;:'"
_FEW_WORDS = 5
_SENTENCES = re.compile(
    r"\n"
)  # replies are in lower case here, so sentences cannot be split at capitals
_PHRASES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NO_ANSWER = {":", ",", ".", "!", "?", ";", "'"}
_PICTURE = re.compile(r"<image (\d+)>")
_NUMBERS = (  # matches start only at the first digit of a number, so that the time is linear in the reply
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d+"),  # 5e-3
    re.compile(r"-?(?:(?<!\d)\d++\.\d+|\.\d+|(?<!\d)\d++\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12.5
)


# ---- data ------------------------------------------------------------------------------------------
def questions(data: Mapping[str, Path]) -> list[Question]:
    """The 900 questions; `facts` has the options by letter (empty for short answers) and all gold answers."""
    found = []
    rows = hub_rows(data["questions"], "MMMU", NEEDED, TABLES, lambda row: str(row["id"]))
    for path, row in rows:
        name = str(row["id"])
        options = dict(zip(LETTERS, _options(path, name, row["options"]), strict=False))
        gold = _listed(path, name, row["answer"])
        if options:
            demand_option(path, name, gold[0], options)
        listed = "".join(f"\n{name}. {text}" for name, text in options.items())
        text = f"{row['question']}{listed}{CHOICE_SUFFIX if options else OPEN_SUFFIX}"
        numbers = sorted({int(number) for number in _PICTURE.findall(text)})
        facts = {"options": options, "gold": gold, "pictures": len(numbers)}
        first, *more = [picture_id(name, number) for number in numbers or [1]]
        subject = name.split("_", 1)[-1].rsplit("_", 1)[0]
        found.append(Question(name, first, text, str(gold[0]), subject, facts, tuple(more)))
    return found


def picture_id(name: str, number: int) -> str:
    """The id of the image that a question refers to as `<image number>`."""
    return name if number == 1 else f"{name}#{number}"


def picture_place(image_id: str) -> tuple[str, str]:
    """The question id and the column of an image."""
    name, _, number = image_id.partition("#")
    return name, f"image_{number or 1}"


def _options(path: Path, name: str, cell: Any) -> list[str]:
    """The options of a row: a Python list in a string, as in the published table, or an actual list."""
    found = _literal(path, name, cell) if isinstance(cell, str) else cell
    if (
        not isinstance(found, list | tuple)
        or len(found) > len(LETTERS)
        or not all(map(_is_cell, found))
    ):
        raise ValueError(
            f"{path}: {name}: the options are not a list of at most {len(LETTERS)} texts; fetch the pinned revision of "
            "its source"
        )
    return [str(option) for option in found]


def _is_cell(option: Any) -> bool:
    return isinstance(option, str | int | float)


def _listed(path: Path, name: str, answer: Any) -> list[str]:
    """The gold answers as a list; the table has one text, a Python list in a string, or an actual list."""
    if isinstance(answer, str) and answer.startswith("["):
        answer = _literal(path, name, answer)
    found = answer if isinstance(answer, list | tuple) else [answer]
    if not found or any(item is None for item in found):
        raise ValueError(f"{path}: {name}: has no answer; fetch the pinned revision of its source")
    return [str(item) for item in found]


def _literal(path: Path, name: str, text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{path}: {name}: {text[:60]!r} is not a list; fetch the pinned revision of its source"
        ) from error


# ---- multiple choice: pure ---------------------------------------------------------------------------
def parse_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """The option letter in a reply, the last one if there are several; None if there is none."""
    text = reply
    for mark in _STRIPPED:
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {name: text.rfind(form.format(name)) for name in options}
        if any(place >= 0 for place in places.values()):
            return max(places, key=lambda name: places[name])
    if len(text.split()) > _FEW_WORDS:
        lower = text.lower()
        places = {name: lower.rfind(option.lower()) for name, option in options.items()}
        if any(place >= 0 for place in places.values()):
            return max(places, key=lambda name: places[name])
    return None


# ---- short answers: pure -----------------------------------------------------------------------------
def parse_open(reply: str) -> set[Value]:
    """All candidate values in a reply: the text after its key phrases, else all of it, and the numbers in that text."""
    offers = _key_phrases(reply)
    numbers = [number for offer in offers for number in _numbers_in(offer)]
    return {value for offer in [*offers, *numbers] for value in normalise(offer)}


def _key_phrases(reply: str) -> list[str]:
    """The shortest text after a key phrase of each sentence, else the whole reply.

    As in the official script (`if shortest_key_response:`), an empty text gives way to that of the next
    phrase, and is no answer of its own.
    """
    text = reply.strip().strip(".").lower()
    lines = _SENTENCES.split(text)
    found = []
    for number, line in enumerate(lines):
        phrases = (*_PHRASES, "=") if number == len(lines) - 1 else _PHRASES
        shortest = ""
        for phrase in phrases:
            if phrase not in line:
                continue
            after = line.split(phrase)[-1].strip()
            if not shortest or len(after) < len(shortest):
                shortest = after
        if shortest and shortest not in _NO_ANSWER:
            found.append(shortest)
    return found or [text]


def _numbers_in(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]


def normalise(value: str) -> list[Value]:
    """A number rounded to 2 decimals, or the text in lower case; single letters are padded to match whole words."""
    text = value.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def correct_open(gold: str | Sequence[str], offered: set[Value]) -> bool:
    """Whether a gold text occurs in an offered text, or an offered number equals a gold number."""
    wanted = [value for g in ([gold] if isinstance(gold, str) else gold) for value in normalise(g)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in offer for text in texts) if isinstance(offer, str) else offer in wanted
        for offer in offered
    )


# ---- grading -----------------------------------------------------------------------------------------
def _chosen(question: Question, reply: str, letter_rule: bool, reader: str) -> str | None:
    """The option that a reader finds in a multiple-choice reply; None if it finds none."""
    options = question.facts["options"]
    if reader == "careful":
        return careful.letter(reply, options)
    text = (letter(reply, options, None) or "") if letter_rule else reply
    return parse_choice(text, options)


def _right(
    question: Question,
    reply: str,
    random_choice: bool,
    letter_rule: bool,
    seed: int,
    reader: str = "published",
) -> bool:
    options = question.facts["options"]
    if not options:
        return correct_open(question.facts["gold"], parse_open(reply))
    found = _chosen(question, reply, letter_rule, reader)
    if found is None and random_choice:
        names = list(options)
        found = names[int(numpy_generator("mmmu", seed, question.id).integers(len(names)))]
    return found == question.answer


def grade(
    asked: Sequence[Question],
    answers: Mapping[str, str],
    *,
    random_choice: bool = False,
    letter_rule: bool = True,
    seed: int = 42,
    reader: careful.Reader = "published",
    partial: bool = False,
) -> Graded:
    """Grade answers by question id; `overall` is the accuracy over all questions in percent.

    `letter_rule`: reduce a multiple-choice reply to a letter first, like the BAGEL script.
    `random_choice`: a reply without an option counts as a random one, like in the official code; both are reported.
    `reader: careful` parses multiple-choice replies with `careful.letter`; scores of both readers and their
    disagreements are reported.
    """
    coverage, rows = answered("mmmu", asked, answers, partial)
    shown: dict[str, float | None] = {}
    ways = {
        "without_random_choice": (False, reader),
        "with_random_choice": (True, reader),
        **{f"{name}_reader": (random_choice, name) for name in careful.READERS},
    }
    for name, (guess, by) in ways.items():
        right = [_right(q, reply, guess, letter_rule, seed, by) for q, reply in rows]
        share = mean([float(value) for value in right])
        shown[name] = None if share is None else 100 * share
    shown["overall"] = shown["with_random_choice" if random_choice else "without_random_choice"]
    items: list[dict[str, Any]] = [
        {"id": q.id, "task": q.kind,
         "score": float(_right(q, reply, random_choice, letter_rule, seed, reader))}
        for q, reply in rows
    ]  # fmt: skip
    groups = by_category((row["task"], row["score"]) for row in items)
    shown |= {f"subjects.{n}": 100 * sum(v) / len(v) for n, v in groups.items()}
    several = {q.id for q, _ in rows if q.facts.get("pictures", 1) > 1}
    alone = mean([row["score"] for row in items if row["id"] not in several])
    shown["one_picture"] = None if alone is None else 100 * alone
    limits = interval(("mmmu", row["id"], 100 * row["score"]) for row in items)
    notes = {
        "random_choice": random_choice,
        "letter_rule": letter_rule,
        "reader": reader,
        "several_pictures": len(several),  # which of their images were shown: `pictures_shown`
    }
    differ = [
        q.id
        for q, reply in rows
        if q.facts["options"]
        and len({_chosen(q, reply, letter_rule, name) for name in careful.READERS}) > 1
    ]
    doubtful = {readings.DIFFERENT: differ}
    return Graded(shown, items, coverage, {"overall": limits} if limits else {}, notes, doubtful)
