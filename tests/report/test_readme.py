"""Every figure of the README is one of the adopted results."""

from __future__ import annotations

from pathlib import Path

import pytest

from reca.records import read_json
from reca.report import readme

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_adopted_results() -> None:
    text = (ROOT / readme.README).read_text()
    assert readme.rewritten(text, readme.table(read_json(ROOT / readme.RESULTS))) == text


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="needs exactly one"):
        readme.rewritten("no marks", "block")
