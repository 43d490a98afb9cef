"""`sources.yaml` as typed entries: every download of the paper, checked while it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from reca.core.documents import read_yaml
from reca.sources.download import Expected, check_url, safe_relative

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


def load_sources(path: Path = SOURCES_FILE) -> dict[str, Source]:
    """Read and check `sources.yaml`; ValueError in one line: file, key path, what is allowed."""
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("sources"), dict):
        raise ValueError(f"{path}: sources: expected a mapping from names to entries")
    entries = document["sources"]
    return {
        name: _source(_Keys(f"{path}: sources.{name}", entries[name]), name) for name in entries
    }


class _Keys:
    """The keys of one mapping, taken one by one, with the key path in every error."""

    def __init__(self, where: str, mapping: Any) -> None:
        if not isinstance(mapping, dict):
            raise ValueError(f"{where}: expected a mapping, found {mapping!r}")
        self.where, self.mapping, self.taken = where, mapping, set[str]()

    def fail(self, key: str, allowed: str) -> ValueError:
        return ValueError(f"{self.where}.{key}: {self.mapping.get(key)!r} is not {allowed}")

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """The value of `key` if it has the type; `default` where it may be absent."""
        self.taken.add(key)
        if key not in self.mapping and default is ...:
            raise ValueError(f"{self.where}.{key}: missing")
        value = self.mapping.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise self.fail(key, f"allowed here: use {names}")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: Any = ...) -> Any:
        value = self.take(key, str, default)
        if value not in allowed:
            raise self.fail(key, f"allowed: use one of {', '.join(allowed)}")
        return value

    def hexadecimal(self, key: str, default: Any = ...) -> str | None:
        value = self.take(key, (str, type(None)), default)
        if value is not None and not is_hex(value, HEX_DIGITS[key]):
            raise self.fail(key, f"allowed: use null or {HEX_DIGITS[key]} lower-case hex digits")
        return value

    def text(self, key: str) -> str:
        value = self.take(key, str)
        if not value.strip():
            raise self.fail(key, "allowed: it must not be empty")
        return value

    def done(self) -> None:
        for key in self.mapping:
            if key not in self.taken:
                known = ", ".join(sorted(self.taken))
                raise ValueError(f"{self.where}.{key}: unknown key; allowed are {known}")


def is_hex(value: object, digits: int) -> bool:
    """Whether `value` is a string of exactly so many lower-case hex digits."""
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _source(keys: _Keys, name: str) -> Source:
    if not NAME.fullmatch(name):
        raise ValueError(f"{keys.where}: {NAME_RULE}")
    kind = keys.choice("kind", get_args(Kind))
    source = Source(
        name=name,
        kind=kind,
        id=keys.take("id", str, None if kind in ("url", "mirror") else ...),
        repo=keys.choice("repo", get_args(Repository), "model"),
        revision=keys.hexadecimal("revision"),
        licence=keys.text("licence"),
        used_by=_names(keys),
        certainty=keys.choice("certainty", get_args(Certainty), "spec"),
        gigabytes=keys.take("gigabytes", (int, float), None),
        note=keys.take("note", str, ""),
        files=_files(keys, kind),
    )
    keys.done()
    if source.id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.id):
        raise keys.fail("id", "allowed: use owner/name")
    return source


def _names(keys: _Keys) -> tuple[str, ...]:
    names = keys.take("used_by", list)
    if not names or not all(isinstance(name, str) for name in names):
        raise keys.fail("used_by", "allowed: use a list of one or more names")
    return tuple(names)


def _files(keys: _Keys, kind: str) -> tuple[SourceFile, ...]:
    items = keys.take("files", list)
    if not items:
        raise keys.fail("files", "allowed: list at least one file")
    files = tuple(_file(f"{keys.where}.files[{i}]", item, kind) for i, item in enumerate(items))
    names = [file.save_as.lower() for file in files]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"{keys.where}.files[{i}]: a second file would be saved as {name!r}")
    return files


def _file(where: str, item: Any, kind: str) -> SourceFile:
    keys = _Keys(where, {"path": item} if isinstance(item, str) else item)
    url = keys.text("url") if kind == "url" else None
    path = unquote(PurePosixPath(urlsplit(url).path).name) if url else keys.text("path")
    # A hub repository keeps its folders (transformers expects them), loose files need none.
    default = path if kind in ("hub", "mirror") else PurePosixPath(path).name
    size = keys.take("bytes", (int, type(None)), None)
    file = SourceFile(
        path=path,
        save_as=keys.take("save_as", str, default),
        url=url,
        sha256=keys.hexadecimal("sha256", None),
        git_blob=keys.hexadecimal("git_blob", None),
        bytes=size,
    )
    keys.done()
    _check_file(keys, file, kind)
    return file


def _check_file(keys: _Keys, file: SourceFile, kind: str) -> None:
    if file.bytes is not None and file.bytes < 0:
        raise keys.fail("bytes", "allowed: use null or a whole number of bytes")
    if file.is_pattern and (kind != "hub" or file.expected.pinned):
        raise keys.fail("path", "allowed: a pattern is for hub sources, and has no hash")
    try:
        for name in {file.path, file.save_as}:
            safe_relative(name)
        if file.url:
            check_url(file.url)
    except ValueError as error:
        raise ValueError(f"{keys.where}: {error}") from None
