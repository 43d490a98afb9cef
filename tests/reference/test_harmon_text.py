"""Harmon's wording and token ids against the official templates."""

from __future__ import annotations

from itertools import dropwhile
from types import SimpleNamespace

import pytest

from reca.models.harmon.layout import IMAGE
from reca.models.harmon.text import TextFrontEnd
from tests.reference import golden_cases as golden
from tests.reference.qwen_table import Table

CASES = golden.cases("harmon", __file__)
START, USER, NEWLINE, DOUBLE, END, ASSISTANT = 151644, 872, 198, 271, 151645, 77091  # harmon.md a


def learned(cases: list[dict]) -> Table:
    """The table of a case's pieces: first the special tokens of harmon.md a, then what its texts show."""
    table = Table()
    for text, ids in {
        "<|im_start|>": [START],
        "user": [USER],
        "\n": [NEWLINE],
        "\n\n": [DOUBLE],
        "<|im_end|>": [END],
        "assistant": [ASSISTANT],
    }.items():
        table.learn(text, ids)
    for text, ids in sorted(
        (pair for one in cases for pair in pairs(one)), key=lambda p: len(p[0])
    ):
        table.learn(text, ids)
    return table


def spoken(case: dict) -> list[dict]:
    """The turns from the first question on: an answer before it has no place in the template."""
    turns = case["conversations"]
    return list(dropwhile(lambda turn: turn["from"] != "human", turns))


def pairs(case: dict) -> list[tuple[str, list[int]]]:
    """Free texts of a case and their ids, without the template around them."""
    ids = [token for token in case["input_ids"] if token != IMAGE]
    if "conversations" not in case:
        text = case.get("prompt", case.get("caption")) or "Generate an image."
        if case["kind"] == "text2image" and case["caption"]:
            text = f"Generate an image: {case['caption'].strip()}"
        opening = 4 if case["kind"] == "inference_i2t" else 3
        return [(text, ids[opening:-5])]
    found, at = [], 0
    for number, turn in enumerate(spoken(case)):
        if turn["from"] == "human":
            text = turn["value"].replace("<image>\n", "").replace("\n<image>", "")
            at += 4 if number == 0 else 3
            stop = ids.index(END, at)
            found.append((text, ids[at:stop]))
            at = stop + 5  # end, newline, start, assistant, newline
        else:
            stop = ids.index(END, at)
            found.append((turn["value"], ids[at:stop]))
            at = stop + 2
    return found


@pytest.fixture(scope="module", params=CASES)
def golden_ids(request: pytest.FixtureRequest) -> tuple[list[dict], TextFrontEnd]:
    described, _ = golden.load("harmon", request.param)
    assert described["template_instruction"] == (
        "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
    )
    return described["cases"], TextFrontEnd(learned(described["cases"]), SimpleNamespace(end=END))


def ids_of(text: TextFrontEnd, case: dict) -> tuple[list[int], list[int] | None]:
    """What we make of a case: ids, and labels where it is a conversation."""
    kind = case["kind"]
    if kind == "recon":
        if case["unconditional"]:
            return text.unconditional(with_image=True), None
        return text.reconstruction(case["prompt"]), None
    if kind == "text2image":
        return text.unconditional() if case["unconditional"] else text.caption(
            case["caption"]
        ), None
    if kind == "image2text":
        said = [turn["value"] for turn in spoken(case)]
        turns = list(zip(said[::2], said[1::2], strict=True))
        return text.conversation(turns, with_image=True)
    if kind == "inference_t2i":
        return text.caption(case["prompt"].removeprefix("Generate an image:")), None
    if kind == "inference_uncond":
        return text.unconditional(), None
    if kind == "inference_i2t":
        return text.question(case["prompt"]), None
    if kind == "inference_recon_prompt_before_image_insertion_after_3_tokens":
        ids = text.reconstruction(case["prompt"], leading_newline=False)
        return [token for token in ids if token != IMAGE], None
    raise AssertionError(f"unknown kind of prompt {kind!r}")


def test_all_prompts(golden_ids: tuple[list[dict], TextFrontEnd]) -> None:
    cases, text = golden_ids
    for case in cases:
        ids, labels = ids_of(text, case)
        assert ids == case["input_ids"], case["kind"]
        assert labels == case.get("labels"), case["kind"]
