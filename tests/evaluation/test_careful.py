"""The careful reader of answers, and both readers' values and differences in every benchmark that has answers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reca.config.schema import BenchmarkConfig
from reca.evaluation import careful, readings
from reca.evaluation.score import graded
from reca.evaluation.tasks import dpg, gqa, mmbench, mme, mmmu, mmvp, pope, seed
from reca.inference.items import Prompt, Question
from tests.evaluation.test_replies import LONG, replies

OPTIONS = {"A": "oak", "B": "elm", "C": "vitamin C", "D": "a small dog"}
LETTERS = {
    "A": ["A", "a", "A because of the leaves", "oak", "not elm but oak"],
    "B": [
        "B", "b", "b)", "(B)", "[B]", "'B'", "B.", "B. elm", "B) elm", "B: elm", "B elm", "**B**", "\uff08\uff22\uff09",
        "Answer: B", "answer is b", "The answer is B.", "The correct answer is (B) elm", "Considering all, B",
        "I think B",
        "B, because", "B\nbecause", "A is wrong, so B", "\\boxed{B}", "\u7b54\u6848\u662fB\u3002", "\u9009B", "ELM.",
        "the elm tree", "The answer is C. Wait, so the answer is B", "Option B",
    ],
    "C": ["I'd choose C", "Not B but C", "vitamin C", "I think it is vitamin C"],
    "D": ["A small dog", "The answer is a small dog", "So the best option would be D: a small dog"],
    None: [
        "", " ", "Don't know", "I cannot tell", "I'm sorry, I can't help.", "A cat", "Dogs", "Bananas", "AB", "Z", "I",
        "A, B", "B or C", "A and B", "A/B", "Answer: A or B", "A. and B. are right", "oak or elm", "neither A nor B",
        "B is wrong", "The answer is not B", "The answer is C. The answer is B", "\ud800", "\u3042",
        "Option A is good while option B is bad", "1", "B" * 3,
    ],
}  # fmt: skip
SAID = {
    "yes": ["Yes", "yes.", "YES", "**Yes**", "y", "true", "Yes, there is", "There is a dog", "Answer: yes", "\u662f",
            "No doubt, yes", "No problem: yes, there is"],
    "no": ["No", "NO", "No\n", "**No**", "no there is not", "There is no dog", "There isn't a dog", "Not really", "n",
           "I don't see any dog", "I cannot see a dog", "No, I can't see one", "The answer is no.", "\u4e0d\u662f",
           "\u6ca1\u6709", "The image does not contain a dog.", "It doesn't show any dog", "I don't think so"],
    None: ["", "I cannot tell.", "Not sure", "No idea", "yes or no", "Yes/No", "I do not know", "Unclear",
           "\u662f\u5426",
           "It is not possible to tell", "A dog that is not asleep", "Know", "maybe", "\ud800"],
}  # fmt: skip


@pytest.mark.parametrize("expected", LETTERS)
def test_letters(expected):
    for reply in LETTERS[expected]:
        assert careful.letter(reply, OPTIONS) == expected, reply


@pytest.mark.parametrize("expected", SAID)
def test_yes_and_no(expected):
    for reply in SAID[expected]:
        assert careful.yes_or_no(reply) == expected, reply


def test_short_answers():
    for reply in ("red", "Red.", "**red**", "The answer is red", "Answer: the red"):
        assert careful.same_answer(reply, "red"), reply
    for reply in ("", "not red", "reddish", "red or blue", "blue"):
        assert not careful.same_answer(reply, "red"), reply
    assert careful.same_answer("two", "2") and careful.same_answer("Yes, it is.", "yes")
    assert not careful.same_answer("I cannot tell", "no")


@settings(max_examples=400, deadline=None)
@given(replies, st.dictionaries(st.sampled_from("ABCDE"), st.text(max_size=6), min_size=1))
def test_any_reply_gives_an_option_or_none(reply, options):
    found = careful.letter(reply, options)
    assert found is None or found in options
    assert found == careful.letter(reply, options)
    assert careful.yes_or_no(reply) in ("yes", "no", None)
    assert careful.same_answer(reply, "oak") in (True, False)


@pytest.mark.parametrize("how", [*LONG, "letters", "answers", "texts"])
def test_very_long_replies_take_no_time(how):
    more = {
        "letters": "A B " * 25_000,
        "answers": "answer is " * 10_000,
        "texts": "vitamin c " * 10_000,
    }
    reply = {**LONG, **more}[how]
    begin = time.process_time()
    careful.letter(reply, OPTIONS)
    careful.yes_or_no(reply)
    careful.same_answer(reply, "oak")
    assert time.process_time() - begin < 5


# ---- in every benchmark --------------------------------------------------------------------------
def choice(name, answer="B"):
    facts = {"options": OPTIONS, "stem": "q", "of": name}
    return Question(f"{name}_art_1", "i", "q", answer, "art", facts)


def choices():
    return [Question(q.id, q.image_id, q.text, q.answer, q.kind, {**q.facts, "of": q.id})
            for q in (choice("a"), choice("b", "D"))]  # fmt: skip


REPLIES = {"a_art_1": "Answer: B", "b_art_1": "Don't know"}
ASKED_YES = [
    Question(f"random-{i}", f"p{i}", "q", answer, "random")
    for i, answer in enumerate(("no", "yes"))
]
YES_REPLIES = {"random-0": "**NO**", "random-1": "I cannot tell."}
# Of each benchmark: its questions, the replies, the overall by the published rule and by the careful reader.
BOTH = {
    "mmbench": (mmbench, choices(), REPLIES, 50, 50),
    "mmmu": (mmmu, choices(), REPLIES, 50, 50),
    "seed": (seed, choices(), REPLIES, 50, 50),
    "mmvp": (mmvp, choices(), {"a_art_1": "Answer: B", "b_art_1": "The answer is (D)"}, 0, 100),
    "pope": (pope, ASKED_YES, YES_REPLIES, 100 * 2 / 3, 0),
    "gqa": (gqa, [Question("a", "i", "q", "red", "gqa"), Question("b", "i", "q", "no", "gqa")],
            {"a": "The answer is red.", "b": "No, it is not"}, 0, 100),
    "mme": (mme, [Question(f"p#{i}", "p", "q", t, "OCR") for i, t in enumerate(("Yes", "No"))],
            {"p#0": "I know: yes", "p#1": "Not sure"}, 50, 50),
}  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_both_readers_are_shown_and_their_differences_counted(name):
    module, asked, given_, published, carefully = BOTH[name]
    by = {reader: module.grade(asked, given_, reader=reader) for reader in careful.READERS}
    default = module.grade(asked, given_)
    assert default.summary == by["published"].summary
    for reader, expected in (("published", published), ("careful", carefully)):
        found = by[reader]
        assert found.summary["overall"] == pytest.approx(expected)
        assert found.summary["published_reader"] == pytest.approx(published)
        assert found.summary["careful_reader"] == pytest.approx(carefully)
        assert found.readings == {readings.DIFFERENT: list(given_)}
        assert found.notes["reader"] == reader
    wrong = BenchmarkConfig(kind=name, options={"reader": "carefull"})
    with pytest.raises(ValueError, match=rf"benchmarks\.{name}\.options\.reader = 'carefull'"):
        graded(wrong, data={}, evidence=[], answers=[], samples=1)


def test_plain_answers_are_read_alike():
    plain = {"a_art_1": "B", "b_art_1": "D"}
    for module in (mmbench, mmmu, seed, mmvp):
        found = module.grade(choices(), plain)
        assert found.readings == {readings.DIFFERENT: []} and found.summary["overall"] == 100
    found = pope.grade(ASKED_YES, {"random-0": "No", "random-1": "Yes"})
    assert found.readings == {readings.DIFFERENT: []} and found.summary["overall"] == 100


def test_what_pope_cannot_read_carefully_is_in_the_recall_alone():
    found = pope.summary(["yes", "yes", "no"], ["Yes", "I cannot tell.", ""], "careful")
    assert (found["unread"], found["precision"], found["recall"]) == (2, 1, 0.5)
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_a_question_of_dpg_whose_parent_is_missing_is_named_and_never_left_out():
    """The official script drops the whole item; its score would rise."""
    row = {
        "item_id": "x",
        "proposition_id": 2,
        "dependency": "7",
        "tuple": "attribute - color (cat)",
    }
    whole = {**row, "item_id": "y", "proposition_id": 1, "dependency": "0"}
    rows = [whole, row]
    said = [{"id": "y", "sample": 0, "question": 1, "answer": "yes"},
            {"id": "x", "sample": 0, "question": 2, "answer": "no"}]  # fmt: skip
    items = [Prompt("x", "p", ""), Prompt("y", "p", "")]
    with pytest.raises(ValueError, match="1 prompts have a question whose parent is not among"):
        dpg.grade(items, rows, said, samples=1)
    found = dpg.grade(items, rows, said, samples=1, partial=True)
    assert (found.coverage.expected, found.coverage.scored) == (2, 1)
    assert not found.coverage.complete


def test_answers_of_dpg_that_say_yes_otherwise():
    question = {
        "item_id": "x",
        "proposition_id": 1,
        "dependency": "0",
        "tuple": "entity - whole (cat)",
    }
    given_ = [{"id": "x", "sample": 0, "question": 1, "answer": "Yes, there is"}]
    for reader, overall in (("published", 0), ("careful", 100)):
        found = dpg.grade([Prompt("x", "p", "")], [question], given_, samples=1, reader=reader)
        assert found.summary["overall"] == overall
        assert found.readings == {readings.DIFFERENT: ["x_0/1"]}
