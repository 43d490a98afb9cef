"""Every figure of the README and of the docs' tables is one of the adopted results."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from reca.core.artifacts import read_json
from reca.report import readme

ROOT = Path(__file__).parents[2]


ADOPTED = [name for name in readme.PAGES if (ROOT / readme.adopted(name)).is_file()]


def test_the_default_experiment_is_adopted() -> None:
    assert "laptop" in ADOPTED


@pytest.mark.parametrize("experiment", ADOPTED)
def test_a_page_shows_the_adopted_results(experiment: str) -> None:
    page, source = readme.PAGES[experiment], readme.adopted(experiment)
    text = (ROOT / page).read_text()
    block = readme.table(read_json(ROOT / source), source, page)
    assert readme.rewritten(text, block, page) == text
    assert (ROOT / page.parent / readme._link(source, page)).samefile(ROOT / source)


@pytest.mark.parametrize("experiment", readme.FIGURES)
def test_a_figure_shows_the_adopted_results(experiment: str) -> None:
    drawn = readme.figure(read_json(ROOT / readme.adopted(experiment)))
    assert (ROOT / readme.FIGURES[experiment]).read_text() == drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert readme.FIGURES[experiment].name in (ROOT / readme.PAGES[experiment]).read_text()


@pytest.mark.parametrize("experiment", readme.PAGES)
def test_a_page_has_a_place_for_its_table(experiment: str) -> None:
    page = readme.PAGES[experiment]
    assert "block" in readme.rewritten((ROOT / page).read_text(), "block", page)


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="must contain exactly one"):
        readme.rewritten("no marks", "block", Path("README.md"))
