"""The transfer of one file over HTTP: resumed, verified, and present only when whole.

A body grows in `<file>.part`, beside a small `<file>.part.json` that says which URL and which
version (ETag) it belongs to. Only a file of the right size and hash is renamed to its name, so an
interrupted download costs nothing and a wrong one never exists. What a later attempt may repair
(dropped connection, stall, 5xx, short body) is retried; what it cannot repair is a `ValueError`.
"""

from __future__ import annotations

import email.utils
import errno
import fcntl
import hashlib
import ipaddress
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tqdm import tqdm

from reca.core.artifacts import fsync_directory, write_json
from reca.core.documents import json_object

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
HTML_STARTS = (b"<!doctype html", b"<html")
TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
REPORT_SECONDS = 30.0  # between two progress lines where no terminal shows a bar


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


@dataclass(frozen=True)
class Policy:
    """Patience of a download; `attempts` counts failures in a row without a new byte."""

    connect_seconds: float = 15.0
    read_seconds: float = 60.0
    attempts: int = 6
    backoff_seconds: float = 1.0
    backoff_limit_seconds: float = 60.0
    redirects: int = 8


UNKNOWN = Expected()
DEFAULT_POLICY = Policy()


class _Again(Exception):
    """A failure that another attempt may repair."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


# ---- names, addresses, hashes --------------------------------------------------------------------
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


def check_url(url: str) -> None:
    """Accept https, and http to the loopback host only; ValueError otherwise."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.password:
        raise ValueError(f"{url!r} is refused: a URL needs a host and must hold no password")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(url)):
        raise ValueError(f"{url!r} is refused: only https (http on the loopback host) is allowed")


def check_redirect(url: str, target: str) -> None:
    """Accept a redirect that loses no protection and does not turn to the user's own machine."""
    try:
        check_url(target)
    except ValueError as error:
        raise ValueError(f"{url} redirects: {error}") from None
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise ValueError(f"{url} redirects from https to http ({target}): refused")
    if is_loopback(target) and not is_loopback(url):
        raise ValueError(f"{url} redirects to the loopback host ({target}): refused")


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


# ---- one file ------------------------------------------------------------------------------------
def download(
    url: str,
    target: Path,
    expected: Expected = UNKNOWN,
    *,
    policy: Policy = DEFAULT_POLICY,
    token: str | None = None,
) -> Digest:
    """Fetch `url` into `target`, which appears last and whole.

    `token` goes to the origin of `url` only, never to where a redirect leads. Raises ValueError
    when the file is refused (wrong hash, HTML page, bad redirect, 4xx) and OSError when it cannot
    be had now (disk full, no progress over `policy.attempts` attempts); then the part is kept.
    """
    check_url(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with part.open("ab", buffering=0) as file, requests.Session() as session:
            _lock(file, part)
            return _Transfer(url, target, part, file, expected, policy, session, token).run()
    finally:
        if part.exists() and part.stat().st_size == 0:
            _discard(part)


def _lock(file: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{part}: another process is downloading this file; wait for it") from None


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)


@dataclass
class _Transfer:
    """One download: a part on disk and the attempts that make it grow."""

    url: str
    target: Path
    part: Path
    file: Any  # the part, unbuffered, in append mode
    expected: Expected
    policy: Policy
    session: requests.Session
    token: str | None

    @property
    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def run(self) -> Digest:
        failures, furthest = 0, self.size
        while True:
            try:
                return self._attempt()
            except _Again as reason:
                failures = 1 if self.size > furthest else failures + 1
                furthest = max(furthest, self.size)
                if failures >= self.policy.attempts:
                    raise ConnectionError(
                        f"{self.url}: gave up after {failures} attempts without progress: {reason}"
                    ) from reason
                self._wait(failures, reason)

    def _wait(self, failures: int, reason: _Again) -> None:
        seconds = self.policy.backoff_seconds * 2 ** (failures - 1)
        if reason.wait_seconds is not None:
            seconds = max(seconds, reason.wait_seconds)
        seconds = min(seconds, self.policy.backoff_limit_seconds)
        log.warning("%s: %s; again in %.1f s", self.url, reason, seconds)
        time.sleep(seconds)

    def _attempt(self) -> Digest:
        known = self._resumable()
        offset = self.size
        if not (offset and offset == known.get("total")):
            with self._request(offset, known.get("etag")) as response:
                offset, total = self._begin(response, offset, known.get("etag"))
                self._receive(response, offset, total)
        return self._finish(resumed=offset > 0)

    def _resumable(self) -> dict[str, Any]:
        """What the sidecar says of the part; without a way to tell versions apart, start over."""
        try:
            known = json_object(_sidecar(self.part).read_bytes(), "sidecar")
        except (FileNotFoundError, ValueError):
            known = {}
        if known.get("url") == self.url and (known.get("etag") or self.expected.pinned):
            return known
        self._restart()
        return {}

    def _restart(self) -> None:
        self.file.truncate(0)
        _sidecar(self.part).unlink(missing_ok=True)

    # ---- the request
    def _request(self, offset: int, etag: str | None) -> requests.Response:
        # Identity: a compressed transfer has neither the size nor the hash of the file.
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if etag:
                headers["If-Range"] = etag
        url = self.url
        for _ in range(self.policy.redirects + 1):
            response = self._get(url, headers)
            if not response.is_redirect:
                return response
            response.close()
            target = urljoin(url, response.headers["Location"])
            check_redirect(url, target)
            url = target
        raise ValueError(f"{self.url}: more than {self.policy.redirects} redirects")

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        same_origin = urlsplit(url)[:2] == urlsplit(self.url)[:2]
        try:
            return self.session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(self.policy.connect_seconds, self.policy.read_seconds),
                auth=_Bearer(self.token if same_origin else None),
            )
        except requests.exceptions.SSLError as error:
            raise ValueError(f"{url}: the certificate is not accepted ({error})") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Again(f"no answer ({type(error).__name__})") from error

    # ---- the answer
    def _begin(self, response: requests.Response, offset: int, etag: str | None) -> tuple[int, int]:
        """Judge the head of an answer: where its body starts, and the total size (0: unknown)."""
        self._check_status(response)
        kind = response.headers.get("Content-Type", "").lower()
        if "text/html" in kind and not self._may_be_html:
            self._refuse("the answer is an HTML page, not the file (an error or log-in page?)")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            self._refuse("the server compresses the transfer although it was asked not to")
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            total = self._continued(response, offset, etag)
        else:
            self._restart()
            offset, total = 0, int(response.headers.get("Content-Length") or 0)
        self._check_room(offset, total)
        self._note_version(response, total)
        return offset, total

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            return
        if status >= 500 or status in TRANSIENT:
            raise _Again(f"the server answered {status}", _retry_after(response))
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._restart()
            raise _Again("the server holds fewer bytes than the part; starting over")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise ValueError(
                f"{self.url}: access denied ({status}); accept the licence at its page and set "
                "HF_TOKEN, or use a mirror folder"
            )
        raise ValueError(f"{self.url}: the server answered {status} {response.reason}")

    def _continued(self, response: requests.Response, offset: int, etag: str | None) -> int:
        """The total size that a 206 states, after checking that it continues our part."""
        match = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip()
        )
        changed = etag and response.headers.get("ETag", etag) != etag
        if not offset or not match or int(match[1]) != offset or changed:
            self._restart()
            raise _Again("the answer does not continue the part; starting over")
        return int(match[2])

    def _check_room(self, offset: int, total: int) -> None:
        want = self.expected.bytes
        if total and want is not None and total != want:
            self._refuse(f"the server announces {total} bytes, expected {want}")
        self._check_disk((total or want or 0) - offset)

    def _check_disk(self, needed: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise _disk_full(self.part, needed, free)

    def _note_version(self, response: requests.Response, total: int) -> None:
        etag = response.headers.get("ETag", "")
        # A weak ETag does not promise equal bytes, and If-Range must not carry one.
        known = {"url": self.url, "etag": etag if etag.startswith('"') else None, "total": total}
        write_json(_sidecar(self.part), known)

    # ---- the body
    def _receive(self, response: requests.Response, offset: int, total: int) -> None:
        limit = total or self.expected.bytes
        with _Progress(self.target.name, offset, limit) as progress:
            for chunk in _chunks(response):
                self._append(chunk, (limit or 0) - self.size)
                progress.add(len(chunk))
                if limit and self.size > limit:
                    self._refuse(f"the body exceeds the {limit} bytes that were announced")
        if total and self.size < total:
            raise _Again(f"short body: {self.size} of {total} bytes")

    def _append(self, chunk: bytes, missing: int) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[self.file.write(view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _disk_full(self.part, max(missing, len(view)), 0) from error

    def _finish(self, *, resumed: bool) -> Digest:
        if not self._may_be_html and _starts_like_html(self.part):
            self._refuse("the body is an HTML page, not the file (an error or log-in page?)")
        try:
            found = verify(self.part, self.expected, origin=self.url)
        except ValueError as error:
            self._restart()
            if resumed:  # the old half may be the culprit: one clean attempt decides
                raise _Again(f"wrong after resuming, starting over ({error})") from error
            raise
        os.fsync(self.file.fileno())
        os.replace(self.part, self.target)
        _sidecar(self.part).unlink(missing_ok=True)
        fsync_directory(self.target.parent)
        return found

    @property
    def _may_be_html(self) -> bool:
        return self.target.suffix.lower() in (".html", ".htm")

    def _refuse(self, why: str) -> None:
        self._restart()
        raise ValueError(f"{self.url}: {why}")


# ---- small parts ---------------------------------------------------------------------------------
class _Bearer(requests.auth.AuthBase):
    """Our token or nothing. Being set, it keeps `requests` from reading passwords in ~/.netrc."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


class _Progress:
    """A bar on a terminal, a line now and then in a log."""

    def __init__(self, name: str, done: int, total: int | None) -> None:
        self.name, self.done, self.total = name, done, total
        self.reported = time.monotonic()
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(
            total=total, initial=done, desc=name, unit="B", unit_scale=True, disable=hidden
        )

    def __enter__(self) -> _Progress:
        return self

    def add(self, count: int) -> None:
        self.done += count
        self.bar.update(count)
        if self.bar.disable and time.monotonic() - self.reported >= REPORT_SECONDS:
            self.reported = time.monotonic()
            log.info("%s: %d of %s bytes", self.name, self.done, self.total or "unknown")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives: `read1` hands over every received byte, a stall loses none."""
    try:
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            yield chunk
    except urllib3.exceptions.ReadTimeoutError as error:
        raise _Again("the transfer stalled") from error
    except (urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise _Again(f"short body: the connection broke ({type(error).__name__})") from error


def _retry_after(response: requests.Response) -> float | None:
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def _starts_like_html(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(HTML_STARTS)


def _disk_full(part: Path, needed: int, free: int) -> OSError:
    text = f"disk full: {needed} more bytes needed, {free} free; the part is kept and resumed"
    return OSError(errno.ENOSPC, text, str(part))
