"""One file over plain HTTP: resumed, verified, and present only when whole (see `parts`)."""

from __future__ import annotations

import email.utils
import errno
import re
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin

import requests
import urllib3

from reca.sources.checks import (
    CHUNK_BYTES,
    UNKNOWN,
    Digest,
    Expected,
    check_redirect,
    check_url,
    site,
)
from reca.sources.parts import DEFAULT_POLICY, Again, Part, Policy

TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


def download(
    url: str,
    target: Path,
    expected: Expected = UNKNOWN,
    *,
    policy: Policy = DEFAULT_POLICY,
    stop: threading.Event | None = None,
) -> Digest:
    """Fetch `url` into `target`, which appears last and whole.

    Raises ValueError when the file is refused (wrong hash, HTML page, bad redirect, 4xx) and OSError when it
    cannot be had now (disk full, no progress over `policy.attempts` attempts); then the part is kept.
    """
    check_url(url)
    with (
        Part(url, target, expected, policy, stop or threading.Event()) as part,
        requests.Session() as session,
    ):
        return part.fill(_Http(session).receive)


class _Http:
    """Makes a part grow by one request."""

    def __init__(self, session: requests.Session) -> None:
        self.session = session

    def receive(self, part: Part) -> None:
        """Ask for the bytes that are missing and append them; Again where they do not all come."""
        etag = part.known().get("etag")
        # Identity: a compressed transfer has neither the size nor the hash of the file.
        headers = {"Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if etag:
                headers["If-Range"] = etag
        with self._request(part, headers) as response:
            total = _begin(part, response, etag)
            _receive(part, response, total)

    def _request(self, part: Part, headers: dict[str, str]) -> requests.Response:
        url = part.url
        for _ in range(part.policy.redirects + 1):
            response = self._get(part, url, headers)
            if not response.is_redirect:
                return response
            response.close()
            try:
                target = urljoin(url, response.headers["Location"])
                check_redirect(url, target)
            except ValueError as error:
                raise ValueError(f"{part.url}: {error}") from None
            url = target
        raise ValueError(f"{part.url}: more than {part.policy.redirects} redirects")

    def _get(self, part: Part, url: str, headers: dict[str, str]) -> requests.Response:
        """Ask `url`, which `part.url` has led to. Errors of `requests` quote it with its signature: none is chained."""
        try:
            return self.session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(part.policy.connect_seconds, part.policy.read_seconds),
                auth=lambda request: request,  # keeps `requests` from sending passwords of ~/.netrc
            )
        except requests.exceptions.SSLError as error:
            raise ValueError(
                f"{part.url}: the certificate of {site(url)} is not accepted ({type(error).__name__}); "
                "check the clock and the proxy of this machine, or use a mirror folder"
            ) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Again(f"no answer ({type(error).__name__})") from None
        except (requests.RequestException, ValueError) as error:  # ValueError: no address at all
            raise ValueError(
                f"{part.url}: the request to {site(url)} failed ({type(error).__name__}); use a mirror folder"
            ) from None


# ---- the answer
def _begin(part: Part, response: requests.Response, etag: str | None) -> int:
    """Judge the head of an answer, and make the part fit it: the total size (0: unknown)."""
    _check_status(part, response)
    html = "text/html" in response.headers.get("Content-Type", "").lower()
    if html and part.target.suffix.lower() not in (".html", ".htm"):
        part.refuse("the answer is an HTML page, not the file (an error or log-in page?)")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        part.refuse("the server compresses the transfer although identity was requested")
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        total = _continued(part, response, etag)
    else:
        part.restart()
        total = int(response.headers.get("Content-Length") or 0)
    part.check_room(total)
    version = response.headers.get("ETag", "")
    # A weak ETag does not promise equal bytes, and If-Range must not carry one.
    part.note(version if version.startswith('"') else None, total)
    return total


def _check_status(part: Part, response: requests.Response) -> None:
    status = response.status_code
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    if status >= 500 or status in TRANSIENT:
        raise Again(f"the server answered {status}", _retry_after(response))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.restart()
        raise Again("the server holds fewer bytes than the part; starting over")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise ValueError(
            f"{part.url}: access denied ({status}); fetch it by hand and use a mirror folder"
        )
    raise ValueError(f"{part.url}: the server answered {status} {response.reason}")


def _continued(part: Part, response: requests.Response, etag: str | None) -> int:
    """The total size that a 206 states, after checking that it continues our part."""
    span = response.headers.get("Content-Range", "").strip()
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", span)
    changed = etag and response.headers.get("ETag", etag) != etag
    if not part.size or not match or int(match[1]) != part.size or changed:
        part.restart()
        raise Again("the answer does not continue the part; starting over")
    return int(match[2])


def _receive(part: Part, response: requests.Response, total: int) -> None:
    limit = total or part.expected.bytes
    with part.bar(total=limit, initial=part.size, desc=part.target.name) as bar:
        for chunk in _chunks(response):
            _append(part, chunk, (limit or 0) - part.size)
            bar.update(len(chunk))
            if limit and part.size > limit:
                part.refuse(f"the body exceeds the {limit} bytes that were announced")
    if total and part.size < total:
        raise Again(f"short body: {part.size} of {total} bytes")


def _append(part: Part, chunk: bytes, missing: int) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[part.file.write(view) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise part.disk_full(max(missing, len(view)), 0) from error


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives: `read1` hands over every received byte, a stall loses none."""
    try:
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            yield chunk
    except urllib3.exceptions.ReadTimeoutError as error:
        raise Again("the transfer stalled") from error
    except (urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise Again(f"short body: the connection broke ({type(error).__name__})") from error


def _retry_after(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, when.timestamp() - time.time())
