"""What commands read from the command line besides plain words: sections, ROLE=DIR pairs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reca.core.artifacts import MANIFEST, SEAL, read_manifest
from reca.core.documents import json_value, read_json
from reca.core.ledger import verify_once
from reca.core.ownership import WorkFolder, check_place


def read_section(text: str) -> dict[str, Any]:
    """A stage's configuration from JSON text or from `@FILE`; ValueError where it is neither.

    FILE may be the `manifest.json` of a finished stage: its section makes the same stage again.
    """
    is_file = text.startswith("@")
    try:
        section = read_json(text[1:]) if is_file else json_value(text, "--section")
    except ValueError as error:
        where = "--section @" if is_file else ""
        raise ValueError(f"{where}{error}; give JSON or @FILE") from error
    if isinstance(section, dict) and {SEAL, "section"} <= section.keys():
        section = read_manifest(Path(text[1:]).parent)["section"]
    if not isinstance(section, dict):
        raise ValueError(f"--section: must be a JSON object, not {type(section).__name__}")
    return section


def pairs(option: str, texts: Iterable[str]) -> dict[str, Path]:
    """Repeated `ROLE=DIR` arguments as a mapping; ValueError for a bad form or a role given twice."""
    found: dict[str, Path] = {}
    for text in texts:
        role, separator, folder = text.partition("=")
        if not (role and separator and folder):
            raise ValueError(
                f"{option} {text!r}: write ROLE=DIR, for example reconstruct=data/world"
            )
        if role in found:
            raise ValueError(f"{option}: role {role!r} is given twice")
        found[role] = Path(folder)
    return found


def roles(sources: Mapping[str, Path]) -> dict[str, Path]:
    """Downloaded folders by the name that they have among a stage's inputs."""
    return {f"source {role}": folder for role, folder in sources.items()}


def work_folder(
    arguments: Namespace, stage: str, reads: Iterable[Path] = (), names: Iterable[str] = ()
) -> WorkFolder:
    """Where a stage keeps its unfinished state: `--work`, else a folder below `work/` named by `--out`.

    `names` are what the stage writes there besides the usual. ValueError unless the folder is absent, empty or
    this stage's own, apart from `--out` and from what the stage reads.
    """
    out = Path(arguments.out)
    if arguments.work is None:
        name = os.path.abspath(out).strip("/").replace("/", "-")
        work = WorkFolder(Path("work/by-hand") / name, stage, frozenset(names))
    else:
        work = WorkFolder(Path(arguments.work), stage, frozenset(names))
        check_place("--work", work.path, [])
        if out.resolve().is_relative_to(work.path.resolve()):
            raise ValueError(
                f"--work {work.path}: is removed at the end of the stage, but holds --out {out}; "
                "name a folder of its own, such as work/NAME"
            )
    if work.path.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"--work {work.path}: lies in --out {out}, which the stage replaces; name a folder of its own, "
            "such as work/NAME"
        )
    work.check(reads)
    return work


def of_section(section: Mapping[str, Any], *names: str) -> list[Any]:
    """The named parts of a section; ValueError names the first that is missing."""
    for name in names:
        if name not in section:
            raise ValueError(f"--section: {name} is missing; it needs {', '.join(names)}")
    return [section[name] for name in names]


def records_of(folders: Mapping[str, Path]) -> dict[str, Path]:
    """What stands for a folder among a stage's inputs: its manifest. Every file that changed is hashed first.

    A folder of the user's own (no stage of ours) has no manifest and is left out; its content is part
    of what the stage records by itself (the fingerprint of the data set). ValueError names a file that
    was damaged since it was written: nothing is made from it.
    """
    made = {name: path for name, path in folders.items() if (path / MANIFEST).is_file()}
    for path in dict.fromkeys(made.values()):
        verify_once(path)
    return {name: path / MANIFEST for name, path in made.items()}
