"""Pinned sources: what the paper downloads, from where, and proof that it is what it was.

`config/sources.yaml` lists every download. What is not fixed there by a hash is fixed on first
contact by `pin`, which writes `config/sources.lock`; `fetch` refuses a source that neither fixes.
Both take a mirror folder (`<mirror>/<source>/<file>`) in place of the network, verified alike.
"""

from __future__ import annotations

import errno
import fnmatch
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from reca.core.artifacts import read_json, write_json
from reca.core.atomic import replacing
from reca.core.documents import fields
from reca.core.locks import in_turn
from reca.core.numbered import incomplete
from reca.core.walk import entries
from reca.sources.catalogue import (
    HEX_DIGITS,
    SOURCES_FILE,
    Source,
    SourceFile,
    is_hex,
    load_sources,
)
from reca.sources.checks import Digest, Expected, safe_relative, verify
from reca.sources.parts import DEFAULT_POLICY, Policy

log = logging.getLogger(__name__)

LOCK_FILE = Path("config/sources.lock")
WORK_DIR = Path("work/downloads")
LOCK_VERSION = 1
_SHOWN = 4  # names of files in an error message
_NO_LINKS = (
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS,
)  # fmt: skip


@dataclass(frozen=True)
class Endpoints:
    """Where hub and git repositories are served; tests and private mirrors set others."""

    hub: str = field(
        default_factory=lambda: os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    )
    git_raw: str = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Fetched:
    """A file that `fetch` wrote: path relative to its folder, content, and where it came from."""

    path: str
    bytes: int
    sha256: str
    url: str
    via: Literal["network", "mirror", "present"]


@dataclass(frozen=True)
class SourceStatus:
    """A line of `reca sources`: an entry, and whether yaml and lock together fix it."""

    source: Source
    pinned: bool


# ---- sources.lock --------------------------------------------------------------------------------
def read_lock(path: Path = LOCK_FILE) -> dict[str, Any]:
    """The entries of the lock by source name; empty where nothing has been pinned yet."""
    if not path.exists():
        return {}
    document = read_json(path)
    if not isinstance(document, dict) or document.get("version") != LOCK_VERSION:
        raise ValueError(f"{path}: not a lock of version {LOCK_VERSION}; delete it and pin again")
    sources: dict[str, Any] = fields(document, path, sources=dict)["sources"]
    return sources


def _locked(source: Source, entry: Mapping[str, Any] | None, path: Path) -> Source:
    """`source` with what the lock knows of it; ValueError where the two contradict each other."""
    if entry is None:
        return source
    remedy = f"run `reca pin {source.name} --update`"
    try:
        files = tuple(SourceFile(**file) for file in entry["files"])
        locked = replace(source, revision=entry["revision"] or source.revision, files=files)
        same = all(entry[key] == getattr(source, key) for key in ("kind", "id", "repo"))
        names = [safe_relative(name) for file in files for name in (file.path, file.save_as)]
        damaged = not names or any(not is_hex(file.sha256, HEX_DIGITS["sha256"]) for file in files)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: sources.{source.name} is damaged ({error}); {remedy}") from error
    if damaged:
        raise ValueError(f"{path}: sources.{source.name} is damaged (no sha256); {remedy}")
    if not same or source.revision not in (None, locked.revision):
        raise ValueError(f"{path}: sources.{source.name} is about another origin; {remedy}")
    stated = _contradiction(source, locked)
    if stated:
        raise ValueError(f"{path}: sources.{source.name}: {stated}; {remedy}")
    return locked


def _contradiction(source: Source, locked: Source) -> str | None:
    """What `sources.yaml` says of the files that the lock does not fulfil, in words."""
    by_path = {file.path: file for file in locked.files}
    for file in source.files:
        if file.is_pattern:
            continue
        if file.path not in by_path:
            return f"{file.path} is missing"
        twin = by_path[file.path]
        for key in ("save_as", "url", "sha256", "git_blob", "bytes"):
            if getattr(file, key) not in (None, getattr(twin, key)):
                return f"{key} of {file.path} differs from sources.yaml"
    for path in by_path:
        if not any(_selects(file, path) for file in source.files):
            return f"{path} is not in sources.yaml"
    return None


def _selects(file: SourceFile, path: str) -> bool:
    return fnmatch.fnmatchcase(path, file.path) if file.is_pattern else file.path == path


def resolved(name: str, *, sources: Path = SOURCES_FILE, lock: Path = LOCK_FILE) -> Source:
    """The entry `name` with everything that yaml and lock know of it."""
    known = load_sources(sources)
    if name not in known:
        raise ValueError(f"{sources}: no source {name!r}; `reca sources` lists them")
    return _locked(known[name], read_lock(lock).get(name), lock)


def list_sources(*, sources: Path = SOURCES_FILE, lock: Path = LOCK_FILE) -> list[SourceStatus]:
    """Every source in the order of `sources.yaml`, with what the lock adds."""
    entries = read_lock(lock)
    merged = [_locked(s, entries.get(s.name), lock) for s in load_sources(sources).values()]
    return [SourceStatus(source, not source.unpinned) for source in merged]


# ---- which files there are -----------------------------------------------------------------------
def _discover(source: Source, mirror: Path | None, endpoints: Endpoints) -> Source:
    """`source` with patterns replaced by files, and a hub revision by its commit."""
    if source.kind != "hub":
        return source
    folder = mirror / source.name if mirror else None
    if folder is not None and folder.is_dir():
        present = {
            path.relative_to(folder).as_posix(): SourceFile(
                path=path.relative_to(folder).as_posix(),
                save_as=path.relative_to(folder).as_posix(),
            )
            for path in sorted(entries(folder))
            if path.is_file()
        }
        _demand_all_parts(source, present, folder)
        return replace(source, files=_select(source, present, str(folder)))
    from reca.sources import hub

    revision, present = hub.list_files(source, endpoints.hub, DEFAULT_POLICY)
    return replace(source, revision=revision, files=_select(source, present, str(source.id)))


def _demand_all_parts(source: Source, present: Iterable[str], folder: Path) -> None:
    """ValueError if numbered files that the entry selects are missing from a mirror."""
    for part in incomplete(sorted(present)):
        # an entry may want some of a set only
        missing = [
            number
            for number in part.missing
            if any(_selects(file, part.path_of(number)) for file in source.files)
        ]
        if missing:
            shown = ", ".join(f"{number:05d}" for number in missing[:_SHOWN])
            more = ", ..." if len(missing) > _SHOWN else ""
            raise ValueError(
                f"{source.name}: {folder} has {part.found} of the {part.count} files like {part.beside}; missing: "
                f"{shown}{more}; copy them"
            )


def _select(
    source: Source, present: Mapping[str, SourceFile], where: str
) -> tuple[SourceFile, ...]:
    """The files that the entry lists; every exact name must exist and every hash match."""
    chosen: dict[str, SourceFile] = {}
    for file in source.files:
        if not file.is_pattern and file.path not in present:
            raise ValueError(
                f"{source.name}: {where} holds no file {file.path!r}; {_alternatives(file, present)}"
            )
        for path in (p for p in present if _selects(file, p)):
            safe_relative(path)
            stated = {k: v for k, v in asdict(file).items() if v is not None and k != "path"}
            chosen[path] = present[path] if file.is_pattern else replace(present[path], **stated)
    if not chosen:
        patterns = ", ".join(file.path for file in source.files)
        raise ValueError(f"{source.name}: {where} holds no file that matches {patterns}")
    return tuple(chosen[path] for path in sorted(chosen))


def _alternatives(file: SourceFile, present: Iterable[str]) -> str:
    """What a missing file may have been renamed to, and the remedy."""
    suffix = PurePosixPath(file.path).suffix
    alike = sorted(path for path in present if PurePosixPath(path).suffix == suffix)
    shown = f"it has {', '.join(alike[:_SHOWN])}{', ...' if len(alike) > _SHOWN else ''}"
    found = shown if alike else f"it has no file that ends in {suffix or file.path}"
    return f"{found}: correct `files` in sources.yaml"


def origin_url(source: Source, file: SourceFile, endpoints: Endpoints) -> str:
    """The address of one file at its origin; ValueError where the network cannot give it."""
    if source.kind == "url":
        return str(file.url)
    if source.kind == "mirror":
        raise ValueError(
            f"{source.name}: {file.save_as} can only come from a mirror folder; put it there as "
            f"{source.name}/{file.save_as} ({source.note or 'it has no address'})"
        )
    if source.revision is None:
        raise ValueError(f"{source.name}: no revision is pinned; run `reca pin {source.name}`")
    if source.kind == "git-raw":
        return f"{endpoints.git_raw}/{source.id}/{source.revision}/{quote(file.path)}"
    from reca.sources import hub

    return hub.file_url(source, file.path, endpoints.hub)


# ---- the verbs -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Way:
    """How files of one source come to the work folder."""

    source: Source
    work: Path
    mirror: Path | None
    endpoints: Endpoints
    policy: Policy
    stop: threading.Event = field(default_factory=threading.Event)

    def bring(self, file: SourceFile) -> tuple[Digest, str]:
        """Put one verified file into the work folder; its digest and how it came."""
        target = self.work / safe_relative(file.save_as)
        if target.exists() and file.expected.pinned:
            present = _matching(target, file.expected)
            if present is not None:
                return present, "present"
        target.parent.mkdir(parents=True, exist_ok=True)
        found = self._in_mirror(file)
        if found is not None:
            return _copy(found, target, file.expected), "mirror"
        return self._from_network(file, target), "network"

    def _from_network(self, file: SourceFile, target: Path) -> Digest:
        url = origin_url(self.source, file, self.endpoints)
        log.info("%s: %s", self.source.name, url)
        if self.source.kind == "hub":
            from reca.sources import hub

            return hub.download(
                self.source,
                file,
                target,
                endpoint=self.endpoints.hub,
                policy=self.policy,
                stop=self.stop,
            )
        from reca.sources.download import download

        return download(url, target, file.expected, policy=self.policy, stop=self.stop)

    def bring_all(self) -> list[tuple[SourceFile, Digest, str]]:
        """`bring` every file, several at once; the first failure stops the others, whose parts are kept."""
        with ThreadPoolExecutor(self.policy.files, "fetch") as pool:
            jobs = [pool.submit(self.bring, file) for file in self.source.files]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                self._end(pool)
                raise
        return [(file, *job.result()) for file, job in zip(self.source.files, jobs, strict=True)]

    def _end(self, pool: ThreadPoolExecutor) -> None:
        self.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        if self.source.kind == "hub":
            from reca.sources import hub

            hub.abort()

    def _in_mirror(self, file: SourceFile) -> Path | None:
        """`<mirror>/<source>/<file>`, else any file of the mirror with the right content."""
        if self.mirror is None:
            return None
        named = self.mirror / self.source.name / safe_relative(file.save_as)
        if named.is_file():
            return named
        if not file.expected.pinned:
            return None
        return next((p for p in self._alike(file) if _matching(p, file.expected)), None)

    def _alike(self, file: SourceFile) -> Iterator[Path]:
        """Files worth hashing: of the same size, or where no size is known of the same name."""
        for path in sorted(self.mirror.rglob("*")) if self.mirror else ():
            if not path.is_file():
                continue
            if file.bytes is None:
                alike = path.name == PurePosixPath(file.save_as).name
            else:
                alike = path.stat().st_size == file.bytes
            if alike:
                yield path


def _check_mirror(mirror: Path | None) -> None:
    if mirror is not None and not mirror.is_dir():
        raise ValueError(f"{mirror}: no such mirror folder")


def _matching(path: Path, expected: Expected) -> Digest | None:
    try:
        return verify(path, expected, origin=str(path))
    except ValueError:
        return None


def _copy(path: Path, target: Path, expected: Expected) -> Digest:
    """Copy, then verify the copy, so that what was hashed is what is used."""
    try:
        with replacing(target) as part:
            shutil.copyfile(path, part)
            return verify(part, expected, origin=str(path))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        needed = path.stat().st_size
        raise OSError(errno.ENOSPC, f"disk full: {needed} bytes needed", str(target)) from error


def fetch(
    name: str,
    out_dir: Path,
    *,
    sources: Path = SOURCES_FILE,
    lock: Path = LOCK_FILE,
    mirror: Path | None = None,
    allow_unpinned: bool = False,
    work: Path = WORK_DIR,
    endpoints: Endpoints | None = None,
    policy: Policy = DEFAULT_POLICY,
) -> list[Fetched]:
    """Bring all files of source `name` into `out_dir`, verified, and say what they are.

    Files gather in `work/<name>`, where an interrupted download goes on next time, and stay there
    until `forget`: what becomes of `out_dir` is the caller's. Raises ValueError for an unpinned
    source or a file that is not what was pinned, OSError when the disk is full or the network
    gives out.
    """
    endpoints = endpoints or Endpoints()
    _check_mirror(mirror)
    source = resolved(name, sources=sources, lock=lock)
    if source.unpinned:
        if not allow_unpinned:
            raise ValueError(
                f"{sources}: sources.{name} is not pinned (no hash for "
                f"{', '.join(source.unpinned)}); run `reca pin {name}` once, or pass "
                "--allow-unpinned"
            )
        log.warning("%s is not pinned: its content is taken on trust", name)
        source = _discover(source, mirror, endpoints)
    way = _Way(source, work / name, mirror, endpoints, policy)
    brought = way.bring_all()
    for file, found, _ in brought:
        _place(way.work / file.save_as, out_dir / file.save_as, found)
    return [_record(source, *item, endpoints) for item in brought]


def _record(source: Source, file: SourceFile, found: Digest, via: Any, at: Endpoints) -> Fetched:
    # A file pinned by hash alone may have no address; the mirror that gave it is not named, as its
    # path belongs to one machine.
    addressed = source.kind == "url" or (source.kind != "mirror" and source.revision)
    url = origin_url(source, file, at) if addressed else f"mirror:{source.name}/{file.save_as}"
    return Fetched(file.save_as, found.bytes, found.sha256, url, via)


def _place(path: Path, target: Path, found: Digest) -> None:
    """Give a whole file a second name; a copy where the file system has no links, or it is another one."""
    try:
        with replacing(target) as part:
            part.unlink()
            os.link(path, part)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        free = shutil.disk_usage(target.parent).free
        if found.bytes > free:
            text = f"disk full: {found.bytes} bytes needed, {free} free; the download is kept"
            raise OSError(errno.ENOSPC, text, str(target)) from error
        _copy(path, target, Expected(found.sha256, found.git_blob, found.bytes))


def forget(name: str, fetched: Iterable[Fetched], *, work: Path = WORK_DIR) -> None:
    """Remove from `work` what `fetch` brought, once it lies whole and for good where it belongs."""
    for file in fetched:
        (work / name / safe_relative(file.path)).unlink(missing_ok=True)


def pin(
    names: Iterable[str],
    *,
    sources: Path = SOURCES_FILE,
    lock: Path = LOCK_FILE,
    mirror: Path | None = None,
    update: bool = False,
    work: Path = WORK_DIR,
    endpoints: Endpoints | None = None,
    policy: Policy = DEFAULT_POLICY,
) -> dict[str, Source]:
    """Fix sources on first contact: commit, sha256 and bytes of every file, written to `lock`.

    Where the hub states a sha256 nothing is downloaded; other files are, into `work/<name>`, where
    `fetch` finds them. What is pinned already stays as it is unless `update`. From a mirror folder
    a source can be pinned offline: by content, without a revision.
    """
    endpoints = endpoints or Endpoints()
    _check_mirror(mirror)
    known = load_sources(sources)
    pinned: dict[str, Source] = {}
    for name in names:
        if name not in known:
            raise ValueError(f"{sources}: no source {name!r}; `reca sources` lists them")
        entries = read_lock(lock)
        if name in entries and not update:
            pinned[name] = _locked(known[name], entries[name], lock)
            log.info("%s is pinned already; --update pins it anew", name)
            continue
        source = _discover(known[name], mirror, endpoints)
        way = _Way(source, work / name, mirror, endpoints, policy)
        pinned[name] = replace(source, files=tuple(_pin_file(way, f) for f in source.files))
        with in_turn(sources):  # read again: another process may have pinned during the downloads
            entries = {**read_lock(lock), name: _entry(pinned[name])}
            write_json(lock, {"version": LOCK_VERSION, "sources": entries})
    return pinned


def _pin_file(way: _Way, file: SourceFile) -> SourceFile:
    if file.sha256 and file.bytes is not None:
        return file
    found, _ = way.bring(file)
    return replace(file, sha256=found.sha256, bytes=found.bytes)


def _entry(source: Source) -> dict[str, Any]:
    kept = asdict(source)
    return {key: kept[key] for key in ("kind", "id", "repo", "revision", "files")}
