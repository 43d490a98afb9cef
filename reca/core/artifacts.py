"""Manifests: what a stage read, what it wrote, and the hashes of both, so that any number can be
walked back to its data.

A stage writes one directory. `manifest.json`, written last, holds only what is reproducible
(inputs, outputs, config section, seed, code); what differs from run to run (time, memory, machine,
commit) lies next to it in `run.json`. The split lets Snakemake compare manifests by checksum: a
stage that ran again and gave the same bytes reruns nothing downstream.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import reca
from reca.core import documents
from reca.core.atomic import disk_error, disk_errors, flush, write_atomic
from reca.core.finite import demand_json
from reca.core.ownership import check_output, check_place, is_derived
from reca.core.staging import StagingFolder

MANIFEST = "manifest.json"
RUN = "run.json"
SEAL = "seal"  # a record's key for the hash of all its other keys
BOUND = "manifest"  # the key of `run.json` for the seal of the manifest next to it
OWNS = "owns"  # in run.json: stage and files, for the time when Snakemake has removed the manifest
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


# ---- hashes ----------------------------------------------------------------------------------------------------------
def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no blanks)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256_bytes(text.encode())


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file, streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- JSON files ------------------------------------------------------------------------------------------------------
def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, sorted and indented, so that equal content gives equal bytes.

    ValueError names a number that is NaN or infinite, which JSON cannot hold.
    """
    demand_json(path, value)
    write_atomic(path, json_text(value))


def write_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines atomically, keys sorted; returns their number. ValueError as of `write_json`."""
    found = list(rows)
    demand_json(path, found)
    write_atomic(
        path, "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in found)
    )
    return len(found)


def json_text(value: Any) -> str:
    """The one form in which the house writes JSON files."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"


def read_json(path: str | Path) -> Any:
    """Read JSON of the house; ValueError names the file when it is missing, damaged or beyond the limits of `plain`."""
    text = documents.read_text(path)
    try:
        return documents.json_value(text, path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it and run the stage again") from error


# ---- cost ------------------------------------------------------------------------------------------------------------
def git_commit(directory: Path | None = None) -> str | None:
    """The commit of the source tree, with a trailing `+` if files differ from it; None outside a checkout."""
    root = directory or Path(reca.__file__).parent.parent
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results, where installed."""
    from importlib import metadata

    found = {"python": platform.python_version(), "reca": reca.__version__}
    for package in (
        "torch",
        "triton",
        "transformers",
        "diffusers",
        "numpy",
        "pillow",
        "safetensors",
        "snakemake",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the stage ran on, without names of hosts or users."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
    }
    if "torch" in sys.modules:
        import torch

        found["threads"] = torch.get_num_threads()
        found["instructions"] = torch.backends.cpu.get_cpu_capability()  # sums differ between them
        if torch.cuda.is_available():
            found["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _cpu_seconds() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _peak_memory_bytes() -> dict[str, int]:
    peak = {"memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            peak["gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return peak


# ---- stages ----------------------------------------------------------------------------------------------------------
def describe_files(
    directory: Path, hashed: Callable[[Path], str] = sha256_file
) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file below `directory` by relative path; the two records and hidden
    indexes are left out.

    A reader may keep an index (`.reca-*`) next to the data: it is derived, and rebuilt when the data change.
    """
    found = (path for path in directory.rglob("*") if path.is_file())
    files = sorted(path for path in found if not is_derived(path.name))
    return {
        str(path.relative_to(directory)): {
            "sha256": hashed(path),
            "bytes": path.stat().st_size,
        }
        for path in files
        if path.name not in (MANIFEST, RUN) or path.parent != directory
    }


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Stage:
    """One stage's output directory: it appears whole, its manifest last, or not at all.

    `inputs` maps a name to the file that was read (usually an upstream manifest). Leaving the
    `with` block by an exception removes the staging folder (a kill leaves it to the next run); the
    former output stays until a new one is complete. `started` (seconds since the epoch) says when
    work before the block began, so that the whole process counts as the stage's cost.

    ValueError, before and after the work, where `out` holds what this very stage did not write, or holds
    or lies in an input (`reads`: folders of the user's own, which have no manifest), and before the work where
    there is no room for the `needs` bytes that it will write. Nothing is touched then. `former`: names that an older
    reca gave the stage; its folders are replaced, too.
    """

    def __init__(
        self,
        name: str,
        out: str | Path,
        *,
        inputs: Mapping[str, str | Path],
        section: Any,
        seed: int | None = None,
        code: str | None = None,
        started: float | None = None,
        reads: Iterable[str | Path] = (),
        needs: int = 0,
        former: Iterable[str] = (),
    ) -> None:
        self.name, self.out, self.began, self.needs = name, Path(out), started, needs
        self.names = (name, *former)
        records = map(Path, inputs.values())
        self.reads = [path.parent if path.name == MANIFEST else path for path in records]
        self.reads += map(Path, reads)
        self._check_out()
        self.described = {
            "stage": name,
            "inputs": {
                key: {"path": _relative(path), "sha256": sha256_file(path)}
                for key, path in inputs.items()
            },
            "section": section,
            "seed": seed,
            "package": reca.__version__,
            "code": code,
        }
        self.notes: dict[str, Any] = {}

    def _check_out(self) -> None:
        check_place("--out", self.out, self.reads)
        check_output(
            self.out, self.name, written(self.out, self.names), older=_is_older(self.out / RUN)
        )

    def is_current(self) -> bool:
        """Whether `out` holds this very stage, whole: same inputs, section, seed, code and package, no byte changed."""
        try:
            record = verify(self.out)
            read_run(self.out)
        except ValueError:
            return False
        return all(record.get(key) == value for key, value in self.described.items())

    def describe(self, **facts: Any) -> None:
        """Add facts to the manifest that its inputs, section, seed and code do not say."""
        self.described.update(facts)

    def note(self, **facts: Any) -> None:
        """Add facts that may differ from run to run to `run.json`."""
        self.notes.update(facts)

    def __enter__(self) -> Stage:
        self.cpu = 0.0 if self.began else _cpu_seconds()
        self.started = self.began or time.time()
        needed = f"{self.needs} bytes " if self.needs else ""
        with disk_errors(self.out, f"write {needed}here"):
            self._room = StagingFolder(self.out, self.needs)
        self.staging = self._room.path
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with disk_errors(self.out, "complete the stage"):
                    self._commit()
        finally:
            self._room.close()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise disk_error(self.out, "complete the stage", error) from error

    def _commit(self) -> None:
        outputs = describe_files(self.staging)
        mode = self.staging.stat().st_mode & 0o666  # what the umask leaves of it
        for path in self.staging.rglob("*"):
            if path.is_file():
                os.chmod(path, mode)  # temp files begin private; results are for sharing
                flush(path)
        body = {**self.described, "outputs": outputs}
        self._record_run(sha256_json(body), sorted(outputs))
        self._check_out()
        self._room.replace()
        write_json(self.out / MANIFEST, {**body, SEAL: sha256_json(body)})

    def _record_run(self, manifest: str, files: list[str]) -> None:
        """Write `run.json`, sealed and bound to the manifest that has the seal `manifest`."""
        usage = {
            "wall_seconds": time.time() - self.started,
            "cpu_seconds": _cpu_seconds() - self.cpu,
        }
        started = datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds")
        facts = {
            "started": started,
            "machine": machine(),
            "versions": versions(),
            "commit": git_commit(),
            OWNS: {"stage": self.name, "files": files},
        }
        body = {**facts, **usage, **_peak_memory_bytes(), **self.notes, BOUND: manifest}
        write_json(self.staging / RUN, {**body, SEAL: sha256_json(body)})


def _relative(path: str | Path) -> str:
    """Paths in records are relative to the working directory: no record names a machine's folders."""
    return os.path.relpath(path)


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a complete stage; ValueError if there is none, or it was changed by hand."""
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{directory}: no {MANIFEST}, so this stage is not complete; run `snakemake` to make it"
        )
    return _opened(path, read_json(path))


def _opened(path: Path, record: Any) -> dict[str, Any]:
    """A record without its seal; ValueError if any byte differs, other bytes of the same meaning included."""
    found = record if isinstance(record, dict) else {}
    body = {key: value for key, value in found.items() if key != SEAL}
    if not body or found.get(SEAL) != sha256_json(body) or path.read_text() != json_text(record):
        raise ValueError(f"{path}: changed since it was written; {_remedy(path.parent)}")
    return body


def written(directory: Path, stages: Collection[str] = ()) -> set[str] | None:
    """All files that a stage (one of `stages`, or any) wrote into a folder by its own sealed records; None if they
    do not say.
    """
    for read in (read_manifest, _owns):
        try:
            record = read(directory)
            if not stages or record["stage"] in stages:
                return {*record.get("outputs", record.get("files", ())), MANIFEST, RUN}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _owns(directory: Path) -> dict[str, Any]:
    """Stage and files by `run.json`: Snakemake removes a manifest before it makes a stage again."""
    path = directory / RUN
    owns: dict[str, Any] = _opened(path, read_json(path))[OWNS]
    return owns


def _is_older(path: Path) -> bool:
    """Whether a `run.json` was written by a reca that listed no files there."""
    try:
        record = read_json(path)
    except ValueError:
        return False
    return isinstance(record, dict) and "wall_seconds" in record and OWNS not in record


def read_run(directory: str | Path) -> dict[str, Any]:
    """The `run.json` of a stage; ValueError if it is missing, was changed, or belongs to another manifest.

    That of an older reca has no seal and is given as it is; it has no key `manifest`.
    """
    path = Path(directory) / RUN
    record = read_json(path)
    if isinstance(record, dict) and record and not {SEAL, BOUND} & record.keys():
        return record
    body = _opened(path, record)
    if body.get(BOUND) != read_json(path.parent / MANIFEST).get(SEAL):
        raise ValueError(f"{path}: belongs to another {MANIFEST}; {_remedy(path.parent)}")
    return body


def verify(directory: str | Path, hashed: Callable[[Path], str] = sha256_file) -> dict[str, Any]:
    """Hash every output again; ValueError names the first file that is missing, changed or not in the manifest.

    `hashed` gives the sha256 of a file; `reca.core.ledger.verify_once` remembers those of unchanged ones.
    """
    directory, manifest = Path(directory), read_manifest(directory)
    found = describe_files(directory, hashed)
    remedy = _remedy(directory)
    for name, record in manifest["outputs"].items():
        if name not in found:
            raise ValueError(f"{directory / name}: missing, though the manifest lists it; {remedy}")
        if found[name] != record:
            raise ValueError(f"{directory / name}: {_DIFFERS}; {remedy}")
    extra = sorted(set(found) - set(manifest["outputs"]))
    if extra:
        raise ValueError(
            f"{directory / extra[0]}: not in the manifest; remove it or run the stage again"
        )
    return manifest


def verified(path: str | Path) -> Path:
    """One output of a stage, hashed again; ValueError names it when it is missing or was changed."""
    path = Path(path)
    record = read_manifest(path.parent)["outputs"].get(path.name)
    if record is None or not path.is_file():
        raise ValueError(f"{path}: missing; {_remedy(path.parent)}")
    if sha256_file(path) != record["sha256"]:
        raise ValueError(f"{path}: {_DIFFERS}; {_remedy(path.parent)}")
    return path


_DIFFERS = "content differs from the manifest's sha256"


def _remedy(directory: Path) -> str:
    """Snakemake makes a stage again where its manifest is gone; what is shipped comes back from git."""
    return f"remove {directory / MANIFEST} and run the stage again (shipped files: git restore)"
