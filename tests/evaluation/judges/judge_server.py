"""A judge on the loopback host that does what the script of a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from reca.config.schema import JudgeConfig
from tests.loopback_server import Handler, Server

KEY = "canary-key-0123456789-nobody-may-see"


class JudgeHandler(Handler):
    """Reads the posted request, then gives the next answer of the script."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked = json.loads(body)
        with self.server.lock:
            self.server.asked.append(self.asked)
            self.server.requests.append((self.path, dict(self.headers.items())))
            script = self.server.script
            answer = script.pop(0) if len(script) > 1 else script[0]
        with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            answer(self)

    def say(self, text: Any, **more: Any) -> None:
        message = {"role": "assistant", "content": text} | more.pop("message", {})
        choice = {"index": 0, "message": message, "finish_reason": more.pop("finish", "stop")}
        usage = more.pop("usage", {"prompt_tokens": 1000, "completion_tokens": 100})
        found = {"model": "judge-2024-05-13", "choices": [choice], "usage": usage, **more}
        self.reply(200, json.dumps(found).encode(), Content_Type="application/json")


class JudgeServer(Server):
    """`asked` holds the posted bodies."""

    asked: list[dict[str, Any]]
    lock: threading.Lock


Answer = Callable[[JudgeHandler], None]


@contextmanager
def serving(*script: Answer) -> Iterator[JudgeServer]:
    server = JudgeServer(("127.0.0.1", 0), JudgeHandler)
    server.script, server.requests, server.asked = list(script), [], []
    server.lock = threading.Lock()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def config(server: JudgeServer, **more: Any) -> JudgeConfig:
    quick: dict[str, Any] = {
        "backoff_seconds": 0.001,
        "timeout_seconds": 0.5,
        "longest_pause_seconds": 0.05,
        "key_variable": "RECA_TEST_JUDGE_KEY",
        "concurrency": 4,
    }
    return JudgeConfig(model="judge-2024-05-13", base_url=f"{server.url}/v1", **(quick | more))


# ---- answers -------------------------------------------------------------------------------------
def says(text: Any, **more: Any) -> Answer:
    return lambda handler: handler.say(text, **more)


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda handler: handler.reply(code, body, **headers)


def cut_short(handler: JudgeHandler) -> None:
    handler.reply(200, b'{"choices": [', length=500)


def hangs_up(handler: JudgeHandler) -> None:
    handler.close_connection = True


def stalls(handler: JudgeHandler) -> None:
    time.sleep(1.0)
    hangs_up(handler)


def drips(handler: JudgeHandler) -> None:
    """A byte now and then: each within the read timeout, all together beyond it."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" " * 70000 if _ == 0 else b" ")
        time.sleep(0.1)
    handler.close_connection = True


def drips_bytes(handler: JudgeHandler) -> None:
    """A byte every tenth of a second, as a gateway that keeps the connection alive: no read ever times out."""
    drips_after(b"")(handler)


def drips_after(body: bytes) -> Answer:
    """A body at once, then a blank every tenth of a second; its end is that of the connection."""

    def answer(handler: JudgeHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)
        for _ in range(30):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)
        handler.close_connection = True

    return answer


def drips_headers(handler: JudgeHandler) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: yes yes yes":
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.1)
    handler.close_connection = True


def after(seconds: float, answer: Answer) -> Answer:
    def waits(handler: JudgeHandler) -> None:
        time.sleep(seconds)
        answer(handler)

    return waits
