"""What the configured readers make of fetched training data."""

from __future__ import annotations

from pathlib import Path

from reca.config.compose import section
from reca.config.schema import DataSource
from reca.core.documents import read_yaml
from reca.data.dataset import Sample
from reca.features.roles import open_role
from tests.hub.benchmarks import CATALOGUE


def samples(name: str) -> list[Sample]:
    """All samples of `config/data/NAME.yaml`, whose sources lie in data/."""
    source = section(DataSource, read_yaml(CATALOGUE.parent / f"data/{name}.yaml"))
    companions = {first: Path("data", folder) for first, folder in source.companions.items()}
    dataset = open_role(source, Path("data", str(source.source)), companions)
    return [dataset[index] for index in range(len(dataset))]
