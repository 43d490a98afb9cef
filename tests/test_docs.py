"""Citations of the reference pages, links and module paths in the docs point to something that exists."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted(path.stem for path in REFERENCE.glob("*.md") if path.stem != "README")
# `harmon.md d1`, `docs/reference/showo.md 3.1, 3.6 (why) and 7.8`; docs/benchmarks.md is another page than
# the reference of that name, so that one is cited with its folder.
SECTION = r"(?:[a-h]\d{0,2}|\d{1,2}(?:\.\d+)?)(?!\w)(?: \([^)]*\))?"
FAMILIES = "|".join(name for name in PAGES if name != "benchmarks")
CITATION = re.compile(
    rf"(?P<page>(?:{FAMILIES})|reference/benchmarks|docs/architecture)\.md`?(?:\s+#)?\s+"
    rf"(?P<sections>{SECTION}(?:(?:, | and ){SECTION})*)"
)
SOURCES = ("reca", "kernels", "perf", "tests", "workflow", "config", "docs")
WRITTEN = {"config/sources.lock"}  # by a command, not part of the repository
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def files() -> list[Path]:
    """Text files of the repository that may cite a page."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *SOURCES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\n")
    paths = (
        [ROOT / name for name in listed]
        if any(listed)
        else [p for top in SOURCES for p in (ROOT / top).rglob("*")]
    )
    texts = [
        path
        for path in paths
        if path.suffix in {".py", ".md", ".yaml", ".smk", ".html"} and path.is_file()
    ]
    return [path for path in texts if "golden" not in path.parts and path != Path(__file__)]


@cache
def sections(page: Path) -> frozenset[str]:
    """Numbers of a page's headings, and of the points in its numbered lists: `d1`, `7`, `7.8`, `g8`."""
    found: set[str] = set()
    current = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"#{2,3} ([a-h]\d*|\d+(?:\.\d+)?)\. ", line):
            current = heading[1]
            found.add(current)
        elif point := re.match(r"(\d+)\. ", line):
            found.add(f"{current}{point[1]}" if current.isalpha() else f"{current}.{point[1]}")
    return frozenset(found)


def citations(text: str) -> list[tuple[str, str]]:
    """Pairs of (page, section) that a text cites."""
    pairs = []
    for match in CITATION.finditer(text):
        bare = re.sub(r"\([^)]*\)", "", match["sections"])
        pairs += [
            (match["page"], section)
            for section in re.findall(r"\b(?:[a-h]\d{0,2}|\d+(?:\.\d+)?)\b", bare)
        ]
    return pairs


def page_of(name: str) -> Path:
    """The file that a cited name means."""
    return (
        ROOT / "docs" / "architecture.md"
        if name == "docs/architecture"
        else REFERENCE / f"{name.split('/')[-1]}.md"
    )


def test_citations_are_read() -> None:
    text = "harmon.md d2, d3 and g18; docs/reference/showo.md 3.1 (text), 3.3; reference/benchmarks.md\n 8; bagel and"
    assert citations(text) == [
        ("harmon", "d2"),
        ("harmon", "d3"),
        ("harmon", "g18"),
        ("showo", "3.1"),
        ("showo", "3.3"),
        ("reference/benchmarks", "8"),
    ]
    assert {"7", "7.8", "3.6"} <= sections(REFERENCE / "showo.md")
    assert {"d", "d1", "g8"} <= sections(REFERENCE / "harmon.md")


def test_every_cited_section_exists() -> None:
    missing, total = [], 0
    for path in files():
        for name, section in citations(path.read_text(encoding="utf-8")):
            total += 1
            if section not in sections(page_of(name)):
                missing.append(f"{path.relative_to(ROOT)}: {name}.md {section}")
    assert not missing
    assert total > 150


def test_nothing_cites_documents_outside_the_repository() -> None:
    outside = re.compile(r"\bSPEC(?:\.md\b|\s+[a-h0-9])|\bDESIGN\b|\.\./shared")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files()
        if (match := outside.search(path.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
            broken.append(target)
    for named in re.findall(r"`((?:reca|kernels|perf|workflow|config|tests|docs)/[\w./-]+)`", text):
        if (
            not re.search(r"[A-Z]{3,}", named)
            and named not in WRITTEN
            and not (ROOT / named.rstrip("/")).exists()
        ):
            broken.append(named)
    assert not broken
