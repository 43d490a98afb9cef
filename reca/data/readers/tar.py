"""Tar shards in the WebDataset layout, read in place: nothing is ever extracted.

Members of one sample share a key (the path up to the first dot of the file name): `0017.jpg`,
`0017.txt`, `0017.json`. The first pass over a shard checks every header and stores the offset of each
member in a small index next to it (see `reca.data.readers.hashes` for its validity). A member is read together with
its header, which must match the name and size in the index: no index can redirect a sample to other bytes.
"""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from reca.core.artifacts import sha256_json
from reca.core.images import SUFFIXES
from reca.core.ledger import hashes_of, load_ledger, save_ledger, stamp
from reca.core.structure import Count
from reca.core.unreadable import UnreadableImage
from reca.core.walk import entries
from reca.data.dataset import NAMES_SHOWN, Sample
from reca.data.readers.folder import natural_key
from reca.data.readers.names import check_unicode
from reca.data.readers.text import caption_in_record, record_in_file, text_in_file

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = SUFFIXES
TEXT_EXTENSIONS = ("txt", "json")
INDEX_PREFIX = ".reca-index-"
INDEX_VERSION = 2
MAX_MEMBER_BYTES = 256 << 20
BLOCK = tarfile.BLOCKSIZE
NO_IMAGE = "keys without an image"
NOT_READ = "members that are neither image nor txt nor json"
EXCLUDED = "shards that the option exclude names"


class Member(NamedTuple):
    """One file of a shard: its normalised name, the offsets of its header and bytes, and its size."""

    name: str
    header: int
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One sample of a shard: its members by extension."""

    shard: Path
    name: str  # shard and key, unique in the data set
    members: dict[str, Member]  # by extension

    def read(self, extension: str) -> bytes:
        """The bytes of one member; `UnreadableImage` if the shard no longer contains them."""
        return read_member(self.shard, self.members[extension], self.name)


class TarDataset:
    """The samples of `*.tar` in a folder and its subfolders (or of one file), in natural order of the shards' paths.

    The caption is the member `txt`, or the string under `caption` in the member `json`, whose other
    keys become `extra`. Keys without an image are counted in `without_image`, other members in `not_read`.
    Shards whose path in the folder matches a shell pattern of `exclude` are left out.

    Raises:
        ValueError: a shard is damaged or compressed, or contains paths that leave it, links, devices,
            sparse or oversized members, or duplicate names; a pattern matches no shard, or they match all.
    """

    def __init__(
        self,
        path: Path,
        caption: str = "caption",
        max_member_bytes: Count = MAX_MEMBER_BYTES,
        exclude: Sequence[str] = (),
    ) -> None:
        self.caption = caption
        self.root = path.parent if path.is_file() else path
        self.shards, excluded = _without(_shards(path), self.root, exclude)
        self.entries: list[Entry] = []
        self.hashes: list[tuple[str, str]] = []
        self.left_out: dict[str, list[str]] = {EXCLUDED: excluded} if excluded else {}
        for shard in self.shards:
            self._add(shard, read_index(shard, max_member_bytes))
        if not self.entries:
            raise ValueError(f"{path}: no image in {len(self.shards)} tar shards")
        for reason, names in self.left_out.items():
            log.warning("%s: %d %s (%s)", path, len(names), reason, ", ".join(names[:NAMES_SHOWN]))

    @property
    def without_image(self) -> int:
        """Number of keys without an image."""
        return len(self.left_out.get(NO_IMAGE, []))

    def __len__(self) -> int:
        """Number of samples with an image."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`."""
        text_only, entry = self.texts(index), self.entries[index]
        return replace(text_only, image=entry.read(_image_extensions(entry.members)[0]))

    def texts(self, index: int) -> Sample:
        """The texts of the sample at `index`."""
        entry = self.entries[index]
        check_unicode(entry.name)
        if not _image_extensions(entry.members):
            raise UnreadableImage(entry.name, _dotted_reason(entry))
        caption, extra = self._texts(entry)
        return Sample(id=entry.name, caption=caption, extra=extra)

    def fingerprint(self) -> str:
        """Hash of the shards' names and contents, and of the option that affects captions."""
        return sha256_json([self.caption, self.hashes])

    def _add(self, shard: Path, index: dict[str, Any]) -> None:
        at = shard.relative_to(self.root)
        self.hashes.append((at.as_posix(), index["sha256"]))
        for key, members in _by_key(shard, index["members"]).items():
            images = _image_extensions(members)
            if len(images) > 1:
                raise ValueError(f"{shard}: key {key} has several images ({', '.join(images)})")
            entry = Entry(shard, f"{at.with_suffix('').as_posix()}/{key}", members)
            if images or _dotted(members):
                self.entries.append(entry)
            else:
                self.left_out.setdefault(NO_IMAGE, []).append(entry.name)
            other = members.keys() - {*images, *TEXT_EXTENSIONS}
            if images and other:
                names = [f"{entry.name}.{extension}" for extension in sorted(other)]
                self.left_out.setdefault(NOT_READ, []).extend(names)

    def _texts(self, entry: Entry) -> tuple[str | None, dict[str, Any]]:
        caption, extra = None, {}
        if "json" in entry.members:
            extra = record_in_file(entry.read("json"), entry.name, "member json")
            caption = caption_in_record(extra, (self.caption,), entry.name, "member json")
        if "txt" in entry.members:
            caption = text_in_file(entry.read("txt"), entry.name, "member txt")
        return caption, extra


def read_index(shard: Path, max_member_bytes: int = MAX_MEMBER_BYTES) -> dict[str, Any]:
    """The index of a shard, read from the file next to it if that is valid.

    Contains `members`, a list of the fields of each `Member`, and the `sha256` of the shard.

    Raises:
        ValueError: see `TarDataset`.
    """
    path = index_of(shard)
    valid_for = {"version": INDEX_VERSION, "stamp": stamp(shard), "limit": max_member_bytes}
    index = load_ledger(path)
    if index.get("valid_for") == valid_for:
        return index
    members = [list(member) for member in scan(shard, max_member_bytes)]
    sha256 = hashes_of(shard.parent, [shard.name])[shard.name]
    index = {"valid_for": valid_for, "members": members, "sha256": sha256}
    save_ledger(path, index)
    return index


def index_of(shard: Path) -> Path:
    """The path of a shard's index."""
    return shard.with_name(f"{INDEX_PREFIX}{shard.name}.json")


def read_member(shard: Path, member: Member, sample: str) -> bytes:
    """The bytes of a member; `UnreadableImage` for `sample` if it is not at its offset in the shard."""
    start, length = member.header, member.offset - member.header
    try:
        with open(shard, "rb", buffering=0) as file:
            complete = os.fstat(file.fileno()).st_size >= member.offset + member.size
            data = os.pread(file.fileno(), length + member.size, start) if complete else b""
    except OSError as fault:
        raise UnreadableImage(sample, f"{shard.name}: {fault.strerror}") from fault
    if len(data) != length + member.size:
        raise UnreadableImage(sample, f"{shard.name} is shorter than its index says")
    if not _begins(data[:length], member):
        raise UnreadableImage(
            sample, f"{shard.name}: is not where the index says; remove {index_of(shard).name}"
        )
    return data[length:]


def _begins(header: bytes, member: Member) -> bool:
    """Whether this is the header of this member."""
    try:
        info = tarfile.TarFile(fileobj=io.BytesIO(header)).next()
    except (tarfile.TarError, ValueError):
        return False
    if info is None:
        return False
    name = PurePosixPath(info.name).as_posix()
    return (name, info.size, info.offset_data) == (member.name, member.size, len(header))


def scan(shard: Path, max_member_bytes: int) -> Iterator[Member]:
    """Check every header of an uncompressed tar and yield its files."""
    total = shard.stat().st_size
    seen: set[str] = set()
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                name = _checked_name(shard, member, total, max_member_bytes)
                if member.isdir():
                    continue
                if name in seen:
                    raise ValueError(f"{shard}: member {name!r} occurs twice")
                seen.add(name)
                yield Member(name, member.offset, member.offset_data, member.size)
            end = archive.offset
    except (tarfile.TarError, OSError, EOFError, OverflowError) as fault:
        raise ValueError(
            f"{shard}: damaged, truncated or compressed tar ({fault}); fetch it again, or unpack "
            "the compression: shards are read in place"
        ) from fault
    _check_end(shard, end)


def _checked_name(shard: Path, member: tarfile.TarInfo, total: int, limit: int) -> str:
    """The member's normalised name, if it is a plain file (or folder) inside the archive and not too large."""

    def refuse(reason: str) -> ValueError:
        return ValueError(f"{shard}: member {member.name!r} {reason}; the shard is rejected")

    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise refuse("leaves the archive")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise refuse("is not a plain file (link, device or sparse)")
    if not 0 <= member.size <= limit:
        raise refuse(f"claims {member.size} bytes; at most {limit} are allowed (max_member_bytes)")
    if member.offset_data + member.size > total:
        raise refuse(f"claims {member.size} bytes, more than the file holds (truncated?)")
    return path.as_posix()


def _check_end(shard: Path, end: int) -> None:
    """Require the end-of-archive marker, as `tarfile` takes any unreadable header but the first as the end."""
    with open(shard, "rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
    if block != bytes(BLOCK):
        raise ValueError(f"{shard}: no end-of-archive marker at byte {end}: truncated or damaged")


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    # A hub's folders are kept: text-to-image-2M has its shard in data_1024_10K/.
    named = (shard for shard in entries(path) if shard.name.endswith(".tar"))
    shards = sorted(named, key=lambda shard: natural_key(shard.as_posix()))
    if not shards:
        raise ValueError(f"{path}: no *.tar in this folder; fetch its source, or set the path")
    return shards


def _without(
    shards: list[Path], root: Path, patterns: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """The shards that no pattern matches, and the names of the others; ValueError for a pattern without a shard."""
    names = {shard: shard.relative_to(root).as_posix() for shard in shards}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise ValueError(
                f"{root}: exclude = {pattern!r} matches no shard of {', '.join(names.values())}; "
                "name the shards to leave out"
            )
    kept = [s for s in shards if not any(fnmatchcase(names[s], pattern) for pattern in patterns)]
    if not kept:
        raise ValueError(f"{root}: exclude = {list(patterns)} matches all shards; leave some")
    return kept, [name for shard, name in names.items() if shard not in kept]


def _by_key(shard: Path, members: list[list]) -> dict[str, dict[str, Member]]:
    keys: dict[str, dict[str, Member]] = {}
    for member in map(Member._make, members):
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        parts = keys.setdefault(key, {})
        if extension.lower() in parts:
            raise ValueError(f"{shard}: key {key} has two members {extension.lower()!r}")
        parts[extension.lower()] = member
    return keys


def _image_extensions(members: dict[str, Member]) -> list[str]:
    return [extension for extension in IMAGE_EXTENSIONS if extension in members]


def _dotted(members: dict[str, Member]) -> list[str]:
    """Extensions with dots that end in an image suffix: images such as `a.b.jpg`, whose key is `a`."""
    return [name for name in members if name.rpartition(".")[2] in IMAGE_EXTENSIONS]


def _dotted_reason(entry: Entry) -> str:
    extension = _dotted(entry.members)[0]
    name = f"{entry.name.rpartition('/')[2]}.{extension}"
    return (
        f"the member {name!r} has dots in its stem: WebDataset ends a key at the first dot and reads "
        f"{extension!r} as the extension; rename it without dots"
    )
