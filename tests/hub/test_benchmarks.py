"""What published experiments download besides models: offered, pinned, fetched, read, observed and scored."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from reca.cli import main
from reca.sources.fetch import list_sources
from tests.hub import benchmarks
from tests.hub.benchmarks import CATALOGUE
from tests.hub.server import Hub

PUBLISHED = ("experiment/paper*", "experiment/ablation_*", "experiment/janus_pro*", "protocol/*")
GROUP = re.compile(r"^  - /(data|benchmark)@\S+: (\w+)$", re.MULTILINE)


@cache
def needed() -> set[str]:
    """The sources of the data sets and benchmarks of all published experiments."""
    config = CATALOGUE.parent
    paths = [path for pattern in PUBLISHED for path in config.glob(f"{pattern}.yaml")]
    groups = {group for path in paths for group in GROUP.findall(path.read_text())}
    found = set()
    for group, name in groups:
        described = yaml.safe_load((config / group / f"{name}.yaml").read_text())
        judge = (described.get("judge") or {}).get("source")
        found |= {described["source"], judge, *described.get("companions", {}).values()}
    return found - {None}


def test_every_source_of_a_published_experiment_is_offered() -> None:
    assert needed() <= set(benchmarks.files())


@pytest.fixture
def offered(site: Hub) -> Hub:
    """All repositories and the mirror folder, with a catalogue that their files fulfil."""
    site.repositories.update(benchmarks.repositories())
    benchmarks.write_mirror(Path("mirror"))
    benchmarks.write_catalogue(Path("config/sources.yaml"))
    return site


def test_all_are_pinned_and_fetched(offered: Hub) -> None:
    assert main(["pin", *sorted(needed()), "--mirror", "mirror"]) == 0
    assert {s.source.name for s in list_sources() if s.pinned} >= needed()
    for name in sorted(needed()):
        assert main(["fetch", name, "--out", f"data/{name}", "--mirror", "mirror"]) == 0
    fetched = {path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    assert b"never fetched" not in fetched
