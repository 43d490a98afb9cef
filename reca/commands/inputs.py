"""Structured command-line arguments: configuration sections, ROLE=DIR pairs, folders of unfinished work."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reca.core.artifacts import MANIFEST, SEAL, read_manifest
from reca.core.documents import fields, json_value, read_json
from reca.core.ledger import verify_once
from reca.core.ownership import WorkFolder, check_place

# Parts of the stages' sections: `reca.config` checks what is in them.
_PARTS: dict[str, type] = dict.fromkeys(("family", "run", "cache_dtype"), str) | dict.fromkeys(
    ("network", "weights", "data", "align", "sampler", "benchmark", "visits", "fit", "phases"), dict
)


def read_section(text: str) -> dict[str, Any]:
    """A stage's configuration from JSON text or from `@FILE`; ValueError if it is neither.

    FILE may be the `manifest.json` of a finished stage, whose section reproduces that stage.
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
    where = f"--section {text}" if is_file else "--section"
    return fields(section, where, **{name: _PARTS[name] for name in section.keys() & _PARTS})


def pairs(option: str, texts: Iterable[str]) -> dict[str, Path]:
    """Repeated `ROLE=DIR` arguments as a mapping; ValueError for a malformed argument or a role given twice."""
    found: dict[str, Path] = {}
    for text in texts:
        role, separator, folder = text.partition("=")
        if not (role and separator and folder):
            raise ValueError(
                f"{option} {text!r}: write ROLE=DIR, for example reconstruct=data/world"
            )
        if role in found:
            raise ValueError(f"{option}: role {role!r} is given twice; give it once")
        found[role] = Path(folder)
    return found


def roles(sources: Mapping[str, Path]) -> dict[str, Path]:
    """Downloaded folders under their names in a stage's inputs."""
    return {f"source {role}": folder for role, folder in sources.items()}


def work_folder(arguments: Namespace, stage: str, reads: Iterable[Path] = ()) -> WorkFolder:
    """The folder for a stage's unfinished work: `--work`, else a folder below `work/` named after `--out`.

    ValueError unless the folder is new, empty or from an earlier run of this stage, and separate from `--out` and from
    the folders in `reads`.
    """
    out = Path(arguments.out)
    if arguments.work is None:
        name = os.path.abspath(out).strip("/").replace("/", "-")
        work = WorkFolder(Path("work/by-hand") / name, stage)
    else:
        work = WorkFolder(Path(arguments.work), stage)
        check_place("--work", work.path, [])
        if out.resolve().is_relative_to(work.path.resolve()):
            raise ValueError(
                f"--work {work.path}: is removed at the end of the stage, but contains --out {out}; "
                "give a separate folder, such as work/NAME"
            )
    if work.path.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"--work {work.path}: is inside --out {out}, which the stage replaces; give a separate folder, "
            "such as work/NAME"
        )
    work.check(reads)
    return work


def of_section(section: Mapping[str, Any], *names: str) -> list[Any]:
    """The named parts of a section; ValueError names the first missing one."""
    for name in names:
        if name not in section:
            raise ValueError(f"--section: {name} is missing; it needs {', '.join(names)}")
    return [section[name] for name in names]


def records_of(folders: Mapping[str, Path]) -> dict[str, Path]:
    """The manifests that represent folders among a stage's inputs; files that changed are hashed again first.

    A user's folder has no manifest and is omitted; the stage records a fingerprint of its contents instead. ValueError
    names a file that was damaged after it was written.
    """
    made = {name: path for name, path in folders.items() if (path / MANIFEST).is_file()}
    for path in dict.fromkeys(made.values()):
        verify_once(path)
    return {name: path / MANIFEST for name, path in made.items()}
