"""The campaign's table, its figures and the page say the same, and everything that was tried held."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import page
from tests.faults.campaign import ROOT
from tests.faults.kinds import KINDS


@pytest.fixture(scope="module")
def figures() -> dict:
    """What the last `make reliability` wrote."""
    return json.loads((ROOT / page.FIGURES).read_text())


def test_every_test_of_the_table_exists_and_stands_there_once():
    named = [test for kind in KINDS for test in kind.tests]
    assert len(named) == len(set(named))
    for file in {test.split("::")[0] for test in named}:
        tree = ast.parse((ROOT / file).read_text())
        found = {f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {test for test in named if test.startswith(file)} <= found


def test_the_page_shows_its_figures(figures):
    assert (ROOT / page.PAGE).read_text() == page.page(figures)


def test_the_figures_are_those_of_the_table(figures):
    """After a change of the table: `make reliability`."""
    assert [tuple(kind.values())[:4] for kind in figures["kinds"]] == [kind[:4] for kind in KINDS]
    assert [tuple(kind["tests"]) for kind in figures["kinds"]] == [kind.tests for kind in KINDS]


def test_everything_that_was_tried_held(figures):
    for kind in figures["kinds"]:
        assert kind["tried"] == kind["held"] > 0, kind["fault"]


@pytest.mark.parametrize(
    ("body", "says", "code"),
    [
        ("    for rng in campaign.draws(3, full=9):\n        with campaign.case():\n            pass", "1 passed", 0),
        ("    with campaign.case('b'):\n        assert False, 'lost'", "1 of 1 cases did not hold", 1),
        ("    pass", "no case was tried", 1),
    ],
    ids=["held", "not held", "nothing tried"],
)  # fmt: skip
def test_a_case_that_does_not_hold_fails_its_test(tmp_path: Path, body: str, says: str, code: int):
    (tmp_path / "test_one.py").write_text(f"def test_one(campaign):\n{body}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.faults.campaign", "-c", "/dev/null", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code and says in done.stdout
