"""A `requests` session that enforces a deadline for the complete request, however slowly the server sends.

The timeouts of `requests` apply to the time between two pieces of data, so a server that sends one byte per second
keeps a connection open forever. Here a timer shuts the socket down, and whatever waits on it (handshake, headers or
body) returns immediately.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class Deadline:
    """The deadline of a request, and the connection to shut down when it passes.

    Keeps a second file descriptor of the connection's socket: the first one changes owner (in the TLS handshake, and
    for a body that ends with the connection), the second stays open until the request is done.
    """

    def __init__(self) -> None:
        self.over = False
        self._twin: socket.socket | None = None
        self._lock = threading.Lock()

    def watch(self, connection: Any) -> None:
        """Set the connection to shut down at the deadline; TimeoutError if it has already passed."""
        with self._lock:
            self._drop()
            if self.over:
                raise TimeoutError("connecting took too long")
            self._twin = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)

    def end(self) -> None:
        """Shut the connection down, so that a blocking read returns."""
        with self._lock:
            self.over = True
            if self._twin is not None:
                with suppress(OSError):  # already closed by the server
                    self._twin.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close the second descriptor, so that the connection can close."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None


_current = threading.local()  # the deadline of each thread's current request


class _Http(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _watched(made)
        return made

    def request(self, *arguments: Any, **more: Any) -> None:
        _watched(self.sock)  # a reused connection does not pass through `_new_conn`
        super().request(*arguments, **more)


class _Https(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _watched(made)
        return made

    def request(self, *arguments: Any, **more: Any) -> None:
        _watched(self.sock)
        super().request(*arguments, **more)


def _watched(made: Any) -> None:
    deadline: Deadline | None = getattr(_current, "deadline", None)
    if deadline is not None and made is not None:
        deadline.watch(made)


def _shows_no_header(record: logging.LogRecord) -> bool:
    """False for urllib3's warning about malformed headers: it quotes them, and a server may echo the key."""
    return not str(record.msg).startswith("Failed to parse headers")


logging.getLogger("urllib3.connection").addFilter(_shows_no_header)


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def proxy_manager_for(self, *arguments: Any, **more: Any) -> Any:
        found = super().proxy_manager_for(*arguments, **more)
        found.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return found


def session() -> requests.Session:
    """A session whose connections can be shut down, for use by one thread."""
    made = requests.Session()
    made.mount("http://", _Adapter())
    made.mount("https://", _Adapter())
    return made


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """A deadline for the requests of this thread in the block, from connecting to the last byte of the body."""
    deadline = Deadline()
    timer = threading.Timer(seconds, deadline.end)
    timer.daemon = True
    _current.deadline = deadline
    timer.start()
    try:
        yield deadline
    finally:
        timer.cancel()
        deadline.release()
        _current.deadline = None
