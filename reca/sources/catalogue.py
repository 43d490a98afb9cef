"""`sources.yaml` as typed entries: every download of the paper, checked while it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from annotated_types import Len
from pydantic import StringConstraints

from reca.core.documents import read_yaml
from reca.core.structure import Whole, build, problem
from reca.sources.checks import Expected, check_url, safe_relative

SOURCES_FILE = Path("config/sources.yaml")
Kind = Literal["hub", "url", "git-raw", "mirror"]
Repository = Literal["model", "dataset"]
Certainty = Literal["spec", "memory"]
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")  # of a source, and of its folder below data/
NAME_RULE = "a name holds lower-case letters, digits, '-' and '.' only"
HEX_DIGITS = {"sha256": 64, "git_blob": 40, "revision": 40}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, or (hub) a pattern for several; `path` is its name at the origin."""

    path: str
    save_as: str
    url: str | None = None
    sha256: str | None = None
    git_blob: str | None = None
    bytes: int | None = None

    @property
    def is_pattern(self) -> bool:
        """Whether `path` may stand for several files."""
        return any(mark in self.path for mark in "*?[")

    @property
    def expected(self) -> Expected:
        """What a download must turn out to be."""
        return Expected(self.sha256, self.git_blob, self.bytes)


@dataclass(frozen=True)
class Source:
    """One entry of `sources.yaml`."""

    name: str
    kind: Kind
    licence: str
    used_by: tuple[str, ...]
    files: tuple[SourceFile, ...]
    revision: str | None = None
    id: str | None = None
    repo: Repository = "model"
    certainty: Certainty = "spec"
    gigabytes: float | None = None
    note: str = ""

    @property
    def unpinned(self) -> tuple[str, ...]:
        """Names of the files that no hash fixes."""
        return tuple(f.path for f in self.files if f.is_pattern or not f.expected.pinned)


# ---- what the file may hold ----------------------------------------------------------------------
Text = Annotated[str, StringConstraints(pattern=r"\S")]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
GitHash = Annotated[str, StringConstraints(pattern="^[0-9a-f]{40}$")]
RepositoryName = Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]


@dataclass(frozen=True, kw_only=True)
class _File:
    """One entry of `files`; a text alone is its `path`."""

    path: Text | None = None
    url: Text | None = None  # kind url, in place of a path
    save_as: str | None = None
    sha256: Sha256 | None = None
    git_blob: GitHash | None = None
    bytes: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One entry of `sources`."""

    kind: Kind
    licence: Text
    used_by: Annotated[list[str], Len(1)]
    files: Annotated[list[_File], Len(1)]
    revision: GitHash | None
    id: RepositoryName | None = None
    repo: Repository = "model"
    certainty: Certainty = "spec"
    gigabytes: float | None = None
    note: str = ""


def load_sources(path: Path = SOURCES_FILE) -> dict[str, Source]:
    """Read and check `sources.yaml`; ValueError in one line: file, key path, what is allowed."""
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("sources"), dict):
        raise ValueError(f"{path}: sources: expected a mapping from names to entries")
    entries = document["sources"]
    return {name: _source(f"{path}: sources.{name}", name, entries[name]) for name in entries}


def is_hex(value: object, digits: int) -> bool:
    """Whether `value` is a string of exactly so many lower-case hex digits."""
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _source(where: str, name: str, described: Any) -> Source:
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: {NAME_RULE}")
    entry = build(_Entry, _spelled_out(described), where)
    if entry.id is None and entry.kind in ("hub", "git-raw"):
        raise ValueError(f"{where}.id is missing: must be owner/name where kind is {entry.kind}")
    files = tuple(
        _file(f"{where}.files[{i}]", one, entry.kind) for i, one in enumerate(entry.files)
    )
    names = [file.save_as.lower() for file in files]
    for i, taken in enumerate(names):
        if taken in names[:i]:
            raise ValueError(f"{where}.files[{i}]: a second file would be saved as {taken!r}")
    return Source(**vars(entry) | {"name": name, "files": files, "used_by": tuple(entry.used_by)})


def _spelled_out(described: Any) -> Any:
    """An entry whose files all have keys."""
    files = described.get("files") if isinstance(described, dict) else None
    if not isinstance(files, list):
        return described
    return {**described, "files": [{"path": f} if isinstance(f, str) else f for f in files]}


def _file(where: str, given: _File, kind: str) -> SourceFile:
    key, other = ("url", "path") if kind == "url" else ("path", "url")
    if getattr(given, key) is None:
        raise ValueError(f"{where}.{key} is missing: a file of kind {kind} has one")
    if getattr(given, other) is not None:
        raise problem(f"{where}.{other}", getattr(given, other), f"must be absent: kind is {kind}")
    path = given.path or unquote(PurePosixPath(urlsplit(str(given.url)).path).name)
    # A hub repository keeps its folders (transformers expects them), loose files need none.
    default = path if kind in ("hub", "mirror") else PurePosixPath(path).name
    save_as = default if given.save_as is None else given.save_as
    file = SourceFile(path, save_as, given.url, given.sha256, given.git_blob, given.bytes)
    if file.is_pattern and (kind != "hub" or file.expected.pinned):
        raise problem(f"{where}.path", path, "a pattern is for hub sources, and has no hash")
    try:
        for name in {file.path, file.save_as}:
            safe_relative(name)
        if file.url:
            check_url(file.url)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return file
