"""A session of `requests` whose every request ends by a deadline, however slowly the server sends.

The timeouts of `requests` are between two pieces of data: a byte a second holds a connection open for ever. Here a
timer shuts the socket down, so that whatever waits on it (handshake, headers or body) returns at once.
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
    """Whether the time of a request is over, and the connection that ends then.

    A second descriptor of the connection's socket is kept: the first is handed from object to object (by the TLS
    handshake, by a body that ends with the connection), the second stays until the request is done.
    """

    def __init__(self) -> None:
        self.over = False
        self._twin: socket.socket | None = None
        self._lock = threading.Lock()

    def watch(self, connection: Any) -> None:
        """The socket to shut down when the time is over; TimeoutError where it is over already."""
        with self._lock:
            self._drop()
            if self.over:
                raise TimeoutError("connecting took too long")
            self._twin = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)

    def end(self) -> None:
        """Shut the connection down: a read that waits on it returns."""
        with self._lock:
            self.over = True
            if self._twin is not None:
                with suppress(OSError):  # closed already by the server
                    self._twin.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Close the second descriptor, so that the connection can be closed."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None


_current = threading.local()  # the deadline of the request that a thread makes


class _Http(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _watched(made)
        return made

    def request(self, *arguments: Any, **more: Any) -> None:
        _watched(self.sock)  # a connection that is used again is not made anew
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
    """Drops urllib3's warning about headers that it cannot read: it quotes them, and a server may repeat the key."""
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
    """A session whose connections can be shut down; for one thread."""
    made = requests.Session()
    made.mount("http://", _Adapter())
    made.mount("https://", _Adapter())
    return made


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """A deadline for the requests that this thread makes inside, from connecting to the last byte of the body."""
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
