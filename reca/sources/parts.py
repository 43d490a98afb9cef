"""A file that is being downloaded: it grows in `<file>.part` and gets its name only when whole and right.

Beside the part, `<file>.part.json` says which URL and version (ETag) the bytes belong to, so an interrupted
download costs nothing. What a later attempt may repair is retried; what it cannot repair is a `ValueError`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type
from tqdm import tqdm

from reca.core.artifacts import write_json
from reca.core.atomic import publish
from reca.core.documents import json_object
from reca.core.locks import lock_file
from reca.sources.checks import Digest, Expected, starts_like_html, verify

log = logging.getLogger(__name__)

REPORT_SECONDS = 30.0  # between two progress lines where no terminal shows a bar


@dataclass(frozen=True)
class Policy:
    """Patience of a download; `attempts` counts failures in a row without a new byte, `files` come at once."""

    connect_seconds: float = 15.0
    read_seconds: float = 60.0
    attempts: int = 6
    backoff_seconds: float = 1.0
    backoff_limit_seconds: float = 60.0
    redirects: int = 8
    files: int = 4


DEFAULT_POLICY = Policy()


class Again(Exception):
    """A failure that another attempt may repair."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Stopped(Exception):
    """Another file of the source failed, or the user interrupted: the part is kept and resumed."""


@dataclass
class Part:
    """The unfinished bytes of `target`, held by one process; `stop` ends every download of the source."""

    url: str
    target: Path
    expected: Expected
    policy: Policy = DEFAULT_POLICY
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.path = self.target.with_name(self.target.name + ".part")
        self.sidecar = self.path.with_name(self.path.name + ".json")
        self.file: Any = None  # unbuffered, in append mode

    def __enter__(self) -> Part:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("ab", buffering=0)
        try:
            taken = lock_file(self.file.fileno(), self.path.parent)
        except BaseException:
            self.file.close()
            raise
        if not taken:
            self.file.close()
            raise ValueError(f"{self.path}: another process is downloading this file; wait for it")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()
            self.sidecar.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return os.fstat(self.file.fileno()).st_size

    def restart(self) -> None:
        """Forget all bytes."""
        self.file.truncate(0)
        self.sidecar.unlink(missing_ok=True)

    def refuse(self, why: str) -> None:
        """Forget all bytes, and raise ValueError: no later attempt can help."""
        self.restart()
        raise ValueError(f"{self.url}: {why}")

    def known(self) -> dict[str, Any]:
        """What the sidecar says of the bytes; starts over where versions cannot be told apart."""
        try:
            known = json_object(self.sidecar.read_bytes(), "sidecar")
        except (FileNotFoundError, ValueError):
            known = {}
        if known.get("url") == self.url and (known.get("etag") or self.expected.pinned):
            return known
        self.restart()
        return {}

    def note(self, etag: str | None, total: int) -> None:
        """Say which version the bytes belong to, and how many there will be (0: unknown)."""
        write_json(self.sidecar, {"url": self.url, "etag": etag, "total": total})

    def check_room(self, total: int) -> None:
        """Refuse another size than the expected one; OSError where the disk cannot take the rest."""
        want = self.expected.bytes
        if total and want is not None and total != want:
            self.refuse(f"the server announces {total} bytes, expected {want}")
        needed = (total or want or 0) - self.size
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise self.disk_full(needed, free)

    def disk_full(self, needed: int, free: int) -> OSError:
        """The error of a disk without room for the rest."""
        text = f"disk full: {needed} more bytes needed, {free} free; the part is kept and resumed"
        return OSError(errno.ENOSPC, text, str(self.path))

    def bar(self, **options: Any) -> tqdm[Any]:
        """A bar on a terminal, a line now and then in a log."""
        return _Bar(self.target.name, self.stop, **options)

    # ---- attempts
    def fill(self, receive: Callable[[Part], None]) -> Digest:
        """Call `receive` until the part is whole, then verify it and give it its name.

        ConnectionError after `policy.attempts` failures in a row without a new byte.
        """
        progress = _Progress(self)
        attempts = Retrying(
            retry=retry_if_exception_type(Again),
            stop=progress.exhausted,
            wait=progress.pause,
            before_sleep=progress.warn,
            retry_error_callback=progress.give_up,
            sleep=self._sleep,
        )
        found: Digest = attempts(self._attempt, receive)
        return found

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped

    def _attempt(self, receive: Callable[[Part], None]) -> Digest:
        known = self.known()
        resumed = self.size > 0
        if not (resumed and self.size == known.get("total")):
            receive(self)
        html = self.target.suffix.lower() in (".html", ".htm")
        if not html and starts_like_html(self.path):
            self.refuse("the body is an HTML page, not the file (an error or log-in page?)")
        try:
            found = verify(self.path, self.expected, origin=self.url)
        except ValueError as error:
            self.restart()
            if resumed:  # the old half may be the culprit: one clean attempt decides
                raise Again(f"wrong after resuming, starting over ({error})") from error
            raise
        self._place()
        return found

    def _place(self) -> None:
        publish(self.path, self.target)
        self.sidecar.unlink(missing_ok=True)


class _Progress:
    """Counts failures in a row without a new byte, for tenacity."""

    def __init__(self, part: Part) -> None:
        self.part, self.failures, self.furthest = part, 0, part.size

    def exhausted(self, state: RetryCallState) -> bool:
        size = self.part.size
        self.failures = 1 if size > self.furthest else self.failures + 1
        self.furthest = max(self.furthest, size)
        return self.failures >= self.part.policy.attempts

    def pause(self, state: RetryCallState) -> float:
        policy = self.part.policy
        backoff = policy.backoff_seconds * 2 ** (self.failures - 1)
        return min(max(backoff, _reason(state).wait_seconds), policy.backoff_limit_seconds)

    def warn(self, state: RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0.0
        log.warning("%s: %s; again in %.1f s", self.part.url, _reason(state), seconds)

    def give_up(self, state: RetryCallState) -> Any:
        reason = _reason(state)
        raise ConnectionError(
            f"{self.part.url}: gave up after {self.failures} attempts without progress: {reason}"
        ) from reason


def _reason(state: RetryCallState) -> Again:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Again)
    return error


class _Bar(tqdm):
    """tqdm, with a line in the log now and then where no terminal shows a bar, and a way to stop."""

    def __init__(self, name: str, stop: threading.Event, **options: Any) -> None:
        self.name, self.stop, self.done = name, stop, options.get("initial", 0)
        self.reported = time.monotonic()
        shown = {"unit": "B", "unit_scale": True} | options
        super().__init__(**shown, disable=not sys.stderr.isatty())

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` bytes; Stopped where the downloads of the source have ended."""
        if self.stop.is_set():
            raise Stopped
        self.done += n or 0
        if self.disable and time.monotonic() - self.reported >= REPORT_SECONDS:
            self.reported = time.monotonic()
            log.info("%s: %d of %s bytes", self.name, self.done, self.total or "unknown")
        return super().update(n)
