"""Everything that a published experiment downloads besides its models: data, benchmarks, judges' prompts, detectors.

`repositories` is for the hub of `tests/hub/server.py`. Sources without a hub come from the folder of `write_mirror`.
Some of them have hashes in `config/sources.yaml`, which files in our own words cannot have: `write_catalogue` writes
the same catalogue without these, and `reca pin` fixes what is there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from reca.sources.catalogue import load_sources
from tests.hub import prompt_sets, question_sets, training_sets
from tests.hub.encoded import Files
from tests.hub.server import Repository

CATALOGUE = Path(__file__).parents[2] / "config/sources.yaml"
KNOWN = ("sha256", "git_blob", "bytes")  # what a catalogue states of a file's content


@cache
def texts() -> dict[str, Files]:
    """Files by source of `config/sources.yaml`, without those of networks."""
    return {**training_sets.files(), **prompt_sets.files(), **question_sets.files()}


@cache
def files() -> dict[str, Files]:
    """Files by source."""
    from tests.hub import observers  # imports torch, which data sets do not need

    return {**texts(), **observers.files()}


def repositories() -> dict[str, Repository]:
    """Repositories of the sources that have a hub, by id; those of data sets with `datasets/` before it."""
    known = load_sources(CATALOGUE)
    return {
        ("datasets/" if known[name].repo == "dataset" else "") + str(known[name].id): (
            Repository.of(found)
        )
        for name, found in files().items()
        if known[name].kind == "hub"
    }


def mirrored() -> dict[str, Files]:
    """Files of the sources that have no hub."""
    known = load_sources(CATALOGUE)
    return {name: found for name, found in texts().items() if known[name].kind != "hub"}


def write_mirror(folder: Path) -> None:
    """Write the sources that have no hub, each below its name, as `reca pin` and `reca fetch --mirror` expect them."""
    for name, found in mirrored().items():
        for path, data in found.items():
            target = folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def write_catalogue(path: Path) -> None:
    """Write `config/sources.yaml` without the hashes and sizes of files that `write_mirror` replaces."""
    found = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    for name in mirrored():
        listed = found["sources"][name]["files"]
        found["sources"][name]["files"] = [
            {k: v for k, v in file.items() if k not in KNOWN} if isinstance(file, dict) else file
            for file in listed
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
