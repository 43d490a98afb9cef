"""What a file name, an address and a content from outside must be before we use them."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 20
HTML_STARTS = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class Expected:
    """What is known of a file in advance; `git_blob` is git's own id of a content (a sha1)."""

    sha256: str | None = None
    git_blob: str | None = None
    bytes: int | None = None

    @property
    def pinned(self) -> bool:
        """Whether the content is fixed by a hash."""
        return bool(self.sha256 or self.git_blob)


@dataclass(frozen=True)
class Digest:
    """What a file on disk turned out to be."""

    sha256: str
    git_blob: str
    bytes: int


UNKNOWN = Expected()


def safe_relative(name: str) -> PurePosixPath:
    """A file name from outside as a relative path that cannot leave its folder, or ValueError."""
    path = PurePosixPath(name)
    plain = name and not re.search(r"[\x00-\x1f\x7f\\:]", name) and not path.is_absolute()
    if not plain or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"file name {name!r} is refused: use a plain relative path without '..'")
    return path


def is_loopback(url: str) -> bool:
    """Whether the host of `url` is this very machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, not an address
        return host == "localhost"


def site(url: str) -> str:
    """Scheme and host of an address; the rest of it may hold a signature or a password, which no log may show."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}"


def without_queries(text: str) -> str:
    """Somebody else's message with all addresses cut off before their query."""
    return re.sub(r"(\w://[^\s?'\"()<>]*)\?[^\s'\"()<>]*", r"\1?...", text)


def check_url(url: str) -> None:
    """Accept https, and http to the loopback host only; ValueError otherwise."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.password:
        raise ValueError(f"{site(url)!r} is refused: a URL needs a host and must hold no password")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(url)):
        raise ValueError(
            f"{site(url)!r} is refused: only https (http on the loopback host) is allowed"
        )


def check_redirect(url: str, target: str) -> None:
    """Accept a redirect that loses no protection and does not turn to the user's own machine."""
    here, there = site(url), site(target)
    try:
        check_url(target)
    except ValueError as error:
        raise ValueError(f"{here} redirects: {error}") from None
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise ValueError(f"{here} redirects from https to http ({there}): refused")
    if is_loopback(target) and not is_loopback(url):
        raise ValueError(f"{here} redirects to the loopback host ({there}): refused")


def digest(path: Path) -> Digest:
    """Both hashes and the size of a file, in one pass."""
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    git_blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            git_blob.update(chunk)
    return Digest(sha256.hexdigest(), git_blob.hexdigest(), size)


def verify(path: Path, expected: Expected, *, origin: str) -> Digest:
    """The digest of `path`, or ValueError naming `origin` and the first thing that differs."""
    found = digest(path)
    for kind in ("bytes", "sha256", "git_blob"):
        want, got = getattr(expected, kind), getattr(found, kind)
        if want is not None and want != got:
            raise ValueError(
                f"{origin}: {kind} is {got}, expected {want}; the file is not the one that was "
                "pinned (damaged, or changed at its origin)"
            )
    return found


def starts_like_html(path: Path) -> bool:
    """Whether a file begins as an HTML page does, after a byte order mark and white space."""
    with path.open("rb") as file:
        head = file.read(512)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(HTML_STARTS)
