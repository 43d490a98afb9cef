"""Every figure of the README and of the docs' tables is one of the adopted results."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from reca.core.artifacts import read_json, sha256_file, write_json
from reca.report import readme, statistics

ROOT = Path(__file__).parents[2]


ADOPTED = [name for name in readme.PAGES if (ROOT / readme.adopted(name)).is_file()]


def test_the_default_experiment_is_adopted() -> None:
    assert "laptop" in ADOPTED


@pytest.mark.parametrize("experiment", ADOPTED)
def test_a_page_shows_the_adopted_results(experiment: str) -> None:
    page, source = readme.PAGES[experiment], readme.adopted(experiment)
    text = (ROOT / page).read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert readme.page_text(text, experiment) == text
    assert (ROOT / page.parent / readme._link(source, page)).samefile(ROOT / source)


def test_outcomes_stand_beside_their_chance_level() -> None:
    results = read_json(ROOT / readme.adopted("laptop_edit_kept"))
    levels = readme.chance_of("laptop_edit_kept")
    # of random images, not of unchanged ones
    assert 0 < levels["edit"] < 0.005 < levels["dense"] < 0.05
    lines = readme.table(results, Path("r.json"), Path("p.md"), levels).splitlines()
    column = [cell.strip() for cell in lines[0].split("|")].index("chance")
    rows = [line.split("|") for line in lines[2:] if line.startswith("| ")]
    shown = {row[1].strip(): row[column].strip() for row in rows}
    titles = {row["name"]: row["title"] for row in results["models"][0]["outcomes"]}
    assert shown[titles["edit"]] == f"{levels['edit']:.3f}"
    assert shown[titles["dense"]] == f"{levels['dense']:.3f}"
    assert shown[titles["reconstruction"]] == ""


def test_the_readme_sets_the_families_side_by_side() -> None:
    page = readme.OVERVIEW_PAGE
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        block = readme.overview(page)
    text = (ROOT / page).read_text()
    assert readme.rewritten(text, block, page, readme.OVERVIEW) == text
    for row, experiment in zip(block.splitlines()[2:], readme.FAMILIES, strict=True):
        (model,) = read_json(ROOT / readme.adopted(experiment))["models"]
        gap = readme.reading(model["outcomes"][0])["differences"]["reca - sft"]
        cells = [cell.strip() for cell in row.split("|")]
        assert f"{gap['mean']:+.3f} [" in cells[5]
    assert cells[3:5] == ["0.3", "720"]  # Janus-Pro's recipe


def test_a_family_that_is_not_trained_says_so(tmp_path, monkeypatch) -> None:
    results = read_json(ROOT / readme.adopted("laptop_bagel_bound"))
    results["models"][0]["trained"]["reca"]["trained"] = False
    monkeypatch.chdir(tmp_path)
    write_json(readme.adopted("laptop_bagel_bound"), results)
    (row,) = readme.overview(readme.OVERVIEW_PAGE).splitlines()[2:]
    assert "| 5 bases; RecA not trained |" in row
    assert "**" not in row.split("|", 2)[2]


@pytest.mark.parametrize("experiment", readme.FIGURES)
def test_a_figure_shows_the_adopted_results(experiment: str) -> None:
    drawn = readme.figure(read_json(ROOT / readme.adopted(experiment)))
    assert (ROOT / readme.FIGURES[experiment]).read_text() == drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert readme.FIGURES[experiment].name in (ROOT / readme.PAGES[experiment]).read_text()


@pytest.mark.parametrize("experiment", readme.ARGUMENTS)
def test_the_argument_is_drawn_from_the_adopted_results(experiment: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        drawn = readme.argument(experiment)
    assert (ROOT / readme.ARGUMENTS[experiment]).read_text() == drawn
    assert "chance 0.030" in drawn


@pytest.mark.parametrize("experiment", ADOPTED)
def test_adopted_pictures_are_those_of_the_run(experiment: str) -> None:
    """Numbers that were adopted without images have no file either."""
    about = read_json(ROOT / readme.adopted(experiment)).get("pictures")
    file = ROOT / readme.pictures_of(experiment)
    assert (sha256_file(file) if file.exists() else None) == (about and about["sha256"])


@pytest.mark.parametrize("kind", [readme.TABLE, readme.PICTURE])
@pytest.mark.parametrize("experiment", readme.PAGES)
def test_a_page_has_a_place_for_what_is_generated(experiment: str, kind: str) -> None:
    page, name = readme.PAGES[experiment], readme.block_name(kind, experiment)
    text = (ROOT / page).read_text()
    shown = readme.rewritten(text, "a block", page, name)
    assert "a block" in shown
    assert readme.rewritten(shown, "", page, name).count("\n") <= text.count("\n")


def test_both_readings_are_in_the_table() -> None:
    def cells(value: float) -> dict:
        arms = {arm: statistics.summary([value, value + 0.01]) for arm in ("base", "sft", "reca")}
        gap = statistics.difference([value, value + 0.01], [0.1, 0.1])
        return arms | {"differences": {"reca - sft": gap}}

    rows = [
        {"name": name, "title": name, **cells(0.5), **second}
        for name, second in {
            "dense": {"at_base_guidance": cells(0.3)},
            "geneval_strict": {"at_base_guidance": cells(0.2)},
            "understanding": {},
        }.items()
    ]
    fallen = {"trained": False, "flat": False, "fall": 0.2, "reconstructs": None}
    model = {"name": "m", "bases": 2, "outcomes": rows, "trained": {"sft": fallen}}
    made = {"stages": 1, "machine": {"cores": 2}, "cpu_seconds": 3, "peak_memory_mb": 4}
    results = {"models": [model], "made": made | {"versions": {"torch": "2"}}}
    text = readme.table(results, Path("docs/results/m.json"), Path("README.md"))
    lines = text.splitlines()
    assert (
        lines[0]
        == "| **m** | `base` | `sft` | `reca` | RecA - plain training | the same, own guidance |"
    )
    assert lines[2].startswith("| dense | 0.305 ± ") and "+0.205" in lines[2]
    assert lines[2].endswith("+0.405 [+0.341, +0.469]** |")
    assert lines[3].startswith("| geneval_strict | 0.205")
    assert lines[4].startswith("| understanding | 0.505") and lines[4].endswith("|  |")
    assert "Plain training is not trained: its loss still fell by 20.0% at the end" in text
    assert "2 seeds with a base each; the last two columns are paired by seed" in text
    assert "`reca`" in text and readme.arms_of(results) == ["base", "sft", "reca"]


def test_edits_come_first_and_are_compared_with_the_base_too() -> None:
    results = read_json(ROOT / readme.adopted("laptop_edit_bound"))
    lines = readme.table(results, Path("docs/results/m.json"), Path("docs/m.md")).splitlines()
    gains = ["RecA - base", "RecA - plain training", "the same, own guidance"]
    assert [cell.strip() for cell in lines[0].split("|")[-4:-1]] == gains
    edits, *_ = (row for row in results["models"][0]["outcomes"] if row["name"] == "edit")
    differences = edits["at_base_guidance"]["differences"]
    means = [f"{differences[pair]['mean']:+.3f}" for pair in ("reca - base", "reca - sft")]
    assert lines[2].startswith(f"| {edits['title']} |")
    assert [cell.split()[0] for cell in lines[2].split("|")[-4:-2]] == means
    assert "the last three columns are paired by seed" in "\n".join(lines)


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="must contain exactly one"):
        readme.rewritten("no marks", "block", Path("README.md"))
