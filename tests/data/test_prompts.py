"""The banks of reconstruction prompts: counts, mixture, lengths, and the official list from a
file."""

from __future__ import annotations

import json
import re
from statistics import mean

import pytest

from reca.data.prompts import LAPTOP, bank

PAPER_LIKE = bank()


def test_the_default_bank_has_the_published_size_without_repeats():
    assert len(PAPER_LIKE) == 360
    assert len({prompt.casefold() for prompt in PAPER_LIKE}) == 360
    assert bank("paper_like") == PAPER_LIKE


def test_its_lengths_are_those_of_the_official_list():
    characters = [len(prompt) for prompt in PAPER_LIKE]
    words = [len(prompt.split()) for prompt in PAPER_LIKE]
    assert 18 <= min(characters) <= 30 and 300 <= max(characters) <= 390
    assert 108 <= mean(characters) <= 118  # official: 113
    assert min(words) >= 4 and max(words) <= 42
    assert 14.5 <= mean(words) <= 17  # official: 15.6


def test_its_mixture_has_questions_fragments_and_requests():
    ends = [prompt[-1] for prompt in PAPER_LIKE]
    assert 40 <= ends.count("?") <= 60  # official: 46 of 364
    assert 220 <= ends.count(".") <= 250  # official: 228
    assert sum(end.isalpha() for end in ends) >= 60  # official: 90
    assert len({prompt.split()[0] for prompt in PAPER_LIKE}) >= 40


@pytest.mark.parametrize("prompt", PAPER_LIKE)
def test_every_prompt_is_a_clean_request_to_describe(prompt):
    assert prompt == prompt.strip() and prompt.isascii() and prompt[0].isupper()
    assert not re.search(r"  |\.\.|,\.|TODO|FIXME|[\[\]{}<>\n]", prompt)
    assert not re.search(r"\b(reconstruct|regenerate|draw this|generate)\b", prompt, re.IGNORECASE)
    assert not re.search(r"\b(\w+) \1\b", prompt, re.IGNORECASE)


def test_the_laptop_bank_speaks_a_small_closed_vocabulary():
    assert bank("laptop") == LAPTOP
    assert len(set(LAPTOP)) == 20
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", prompt) for prompt in LAPTOP)
    assert len(set(" ".join(LAPTOP).split())) <= 20


def test_the_single_bank_has_one_prompt():
    assert len(bank("single")) == 1


def test_the_official_list_keeps_its_repeats(tmp_path):
    prompts = ["Say what is there.", "What is it?", "Say what is there."]
    (tmp_path / "list.json").write_text(json.dumps(prompts))
    (tmp_path / "list.txt").write_text("\n".join(prompts) + "\n\n")
    assert bank("file", tmp_path / "list.json") == tuple(prompts)
    assert bank("file", tmp_path / "list.txt") == tuple(prompts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": 1}', r"a\.json: expected a list of strings"),
        ("a.json", "[1, 2]", r"a\.json: expected a list of strings"),
        ("a.json", "[", r"a\.json: not valid JSON"),
        ("a.txt", "\n \n", r"a\.txt: no prompts"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        bank("file", tmp_path / name)


def test_wrong_use_is_explained(tmp_path):
    with pytest.raises(ValueError, match="unknown prompt bank 'gpt'; allowed: paper_like, single"):
        bank("gpt")
    with pytest.raises(ValueError, match="requires the path"):
        bank("file")
    with pytest.raises(ValueError, match="takes no path"):
        bank("laptop", tmp_path)
    with pytest.raises(ValueError, match=r"missing\.txt: cannot read"):
        bank("file", tmp_path / "missing.txt")
