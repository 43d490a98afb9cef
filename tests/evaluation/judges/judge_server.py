"""A judge on the loopback host that does what a script says, and remembers what it was asked.

As a process of its own it answers by rule, and may fail in the middle:

    python -m tests.evaluation.judges.judge_server --port-file FILE [--fail-after N]
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from reca.config.schema import JudgeConfig
from reca.core.artifacts import write_atomic
from tests.evaluation.judges import rules
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


def server_of(script: Sequence[Answer], port: int = 0) -> JudgeServer:
    server = JudgeServer(("127.0.0.1", port), JudgeHandler)
    server.script, server.requests, server.asked = list(script), [], []
    server.lock = threading.Lock()
    return server


@contextmanager
def serving(*script: Answer) -> Iterator[JudgeServer]:
    server = server_of(script)
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


def by_rule(handler: JudgeHandler) -> None:
    """What `rules` says of the request; 400 where it is none that a benchmark makes."""
    try:
        handler.say(rules.reply(handler.asked), model=handler.asked["model"])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        handler.reply(
            400, json.dumps({"error": {"message": f"not understood: {error!r}"}}).encode()
        )


# ---- a process of its own ------------------------------------------------------------------------
FAILURES: dict[str, Answer] = {"500": status(500, b"{}"), "cut": cut_short, "hang-up": hangs_up}


def failing(after: int, times: int, how: Answer) -> list[Answer]:
    """A script that answers `after` requests by rule, fails `times` in a row, and answers all others."""
    return [by_rule] * after + [how] * times + [by_rule]


def main(words: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.evaluation.judges.judge_server")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument(
        "--port-file", type=Path, help="where the port is written once requests are answered"
    )
    parser.add_argument(
        "--fail-after", type=int, default=None, metavar="N", help="answer N requests, then fail"
    )
    parser.add_argument(
        "--failures", type=int, default=20, metavar="N", help="requests that fail then"
    )
    parser.add_argument("--failure", choices=FAILURES, default="500", help="how")
    given = parser.parse_args(words)
    script = [by_rule]
    if given.fail_after is not None:
        script = failing(given.fail_after, given.failures, FAILURES[given.failure])
    server = server_of(script, given.port)
    if given.port_file:
        write_atomic(given.port_file, str(server.server_port).encode())
    print(f"judge at {server.url}/v1", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
