"""The trail, walked: every recorded output is hashed again, and every input is found upstream.

A stage names its inputs by sha256. Where such a hash is that of another stage's manifest, or of a file that it wrote,
the trail goes on there, wherever the folder lies now; so a moved or pulled results folder audits as well as a
fresh one.
Stages outside the audited folders that something in them was made from (shipped weights, data) are
hashed again, too; where their own inputs are not in this checkout, as with weights that were made elsewhere and
ship with it, the trail ends there and says so. What `run.json` says of time and machine is sealed, too, and bound
to the manifest next to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reca.core.artifacts import BOUND, MANIFEST, read_json, read_run, sha256_file, verify
from reca.core.staging import PARTIAL


@dataclass
class Audit:
    """What an audit found: `problems` break the trail, `orphans` are files that no record covers.

    `ends` are stages outside the audited folders that were made from what is not here; `unsealed` are stages of
    an older reca, whose `run.json` has no seal.
    """

    stages: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    unsealed: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every hash is right and every input was found."""
        return not self.problems


def audit(folders: Iterable[str | Path], root: str | Path = ".") -> Audit:
    """Audit all stages below `folders`; paths in records are relative to `root`, the checkout.

    ValueError if a folder does not exist or holds no record at all.
    """
    places, root, found = [Path(folder) for folder in folders], Path(root), Audit()
    manifests = _manifests(places)
    known = {sha256_file(path) for path in manifests}
    known |= {one for path in manifests for one in _outputs(path)}
    used: set[str] = set()
    waiting, seen = list(manifests), {path.resolve() for path in manifests}
    while waiting:
        manifest = waiting.pop(0)
        _check_outputs(manifest.parent, found)
        inputs = _inputs(manifest)
        for path in _upstream(inputs, root, known):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                known.add(sha256_file(path))
                waiting.append(path)
        gone = _missing(inputs, root, known)
        if gone and manifest not in manifests and not any(_is_here(r, root) for r in gone.values()):
            found.ends.append(f"{manifest.parent} (made from {len(gone)} inputs that are not here)")
        else:
            found.problems += [
                f"{manifest.parent}: input {name} ({record['path']}) {_problem(record, root)}"
                for name, record in gone.items()
            ]
        used |= {record["sha256"] for record in inputs.values()}
    stages = {manifest.parent for manifest in manifests}
    found.orphans = [str(path) for path in _uncovered(places, stages) if _is_orphan(path, used)]
    return found


def _manifests(folders: list[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; name one that holds results or data")
    paths = {path for folder in folders for path in folder.rglob(MANIFEST)}
    kept = sorted(path for path in paths if PARTIAL not in str(path))
    if not kept:
        raise ValueError(f"{', '.join(map(str, folders))}: no {MANIFEST} below; nothing to audit")
    return kept


def _check_outputs(directory: Path, found: Audit) -> None:
    found.stages += 1
    try:
        found.files += len(verify(directory)["outputs"])
    except (KeyError, TypeError) as error:
        found.problems.append(f"{directory / MANIFEST}: not a manifest of ours (no {error})")
        return
    except ValueError as error:
        found.problems.append(str(error))
    _check_run(directory, found)


def _check_run(directory: Path, found: Audit) -> None:
    try:
        if BOUND not in read_run(directory):
            found.unsealed.append(str(directory))
    except ValueError as error:
        if str(error) not in found.problems:  # a damaged manifest is one problem, not two
            found.problems.append(str(error))


def _inputs(manifest: Path) -> dict[str, Any]:
    """The inputs that a manifest records; what is damaged in it is reported with the outputs."""
    try:
        inputs = read_json(manifest)["inputs"].items()
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: record for name, record in inputs if _is_record(record)}


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(key), str) for key in ("path", "sha256")
    )


def _outputs(manifest: Path) -> list[str]:
    """The hashes of a stage's files by its manifest; what is damaged in it is reported with the outputs."""
    try:
        return [record["sha256"] for record in read_json(manifest)["outputs"].values()]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _upstream(inputs: dict[str, Any], root: Path, known: set[str]) -> list[Path]:
    """Manifests that were read, are not among the audited stages, and lie where they were read."""
    places = (root / r["path"] for r in inputs.values() if r["sha256"] not in known)
    return [path for path in dict.fromkeys(places) if path.name == MANIFEST and path.is_file()]


def _missing(inputs: dict[str, Any], root: Path, known: set[str]) -> dict[str, Any]:
    """Inputs that are neither as they were where they were read, nor among the audited stages."""
    return {
        name: record
        for name, record in inputs.items()
        if record["sha256"] not in known
        and not (_is_here(record, root) and sha256_file(root / record["path"]) == record["sha256"])
    }


def _is_here(record: dict[str, Any], root: Path) -> bool:
    return (root / record["path"]).is_file()


def _problem(record: dict[str, Any], root: Path) -> str:
    if _is_here(record, root):
        return f"is not what was read (hash {record['sha256'][:12]}); run the stage again"
    return f"is gone, and no audited stage has its hash {record['sha256'][:12]}"


def _uncovered(folders: list[Path], stages: set[Path]) -> list[Path]:
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    return sorted(path for path in files if not stages.intersection(path.parents))


def _is_orphan(path: Path, used: set[str]) -> bool:
    """A file outside all stages is covered still where a stage read it (a chosen guidance, say)."""
    return sha256_file(path) not in used
