"""The repositories of every model source of `config/sources.yaml`, as the loopback hub serves them."""

from __future__ import annotations

from pathlib import Path

from reca.sources.catalogue import load_sources
from tests.hub.checkpoints import WRITERS, repository_of
from tests.hub.networks import Networks
from tests.hub.server import Repository

CATALOGUE = Path(__file__).parents[2] / "config/sources.yaml"


def repositories(scale: str) -> dict[str, Repository]:
    """By hub id, weights, companions and tokenizers of all families at a scale, the same bytes in every process."""
    sources, networks = load_sources(CATALOGUE), Networks(scale)
    return {str(sources[name].id): Repository.of(repository_of(name, networks)) for name in WRITERS}
