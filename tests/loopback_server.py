"""HTTP servers on the loopback host: what they share, and a scripted one for all that may go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


class LoopbackServer(ThreadingHTTPServer):
    daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class LoopbackHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(
        self, status: int, body: bytes = b"", length: int | None = None, **headers: str
    ) -> None:
        """Answer and hang up; `length` is announced where it is not that of the body, `_` is `-` in headers."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep pytest's output clean."""


class Handler(LoopbackHandler):
    """Gives each request to the next answer of the server's script; the last one stays."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items())))
        script = self.server.script
        answer = script.pop(0) if len(script) > 1 else script[0]
        answer(self)


class Server(LoopbackServer):
    script: list[Answer]
    requests: list[tuple[str, dict[str, str]]]
