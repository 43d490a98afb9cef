"""The client of a worker: hands a command over and waits for its end. All that such a process imports is here."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

VARIABLE = "RECA_WORKER"  # name of the worker's socket, or `off`
OFF = "off"
# Set for processes of a cluster's job, whose limits are their own, and of torchrun, which supervises them itself.
ELSEWHERE = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
MESSAGE = 1 << 20  # bytes of the largest message
CLIENT_NAME = "reca:"  # and the process id of its job: what a client that waits calls itself
LOST = "the worker has ended, and this command with it; run it again"


def hand_over(words: Sequence[str], light: Collection[str] = ()) -> int | None:
    """Exit status of this process's command as a worker ran it; None if it is to run here: it was not begun.

    `words`: the command, a verb and its arguments. `light`: verbs that load no large library, which keep to the little
    memory that they have by themselves.
    """
    name = os.environ.get(VARIABLE, OFF)
    # other options of Python, or another way to start, are not what a template has
    if name == OFF or sys.orig_argv[1:3] != ["-m", "reca"] or set(ELSEWHERE) & os.environ.keys():
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(address(name))
            return _ran(connection, words, light) if is_own(connection) else None
    except OSError as error:
        return _not_taken(error)


def _ran(connection: socket.socket, words: Sequence[str], light: Collection[str]) -> int | None:
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        with contextlib.suppress(OSError):
            send(connection, {"signal": number})

    own = {int(n): signal.getsignal(n) for n in FORWARDED}
    ignored = [number for number, handler in own.items() if handler is signal.SIG_IGN]
    for number in own.keys() - set(ignored):
        signal.signal(number, forward)
    try:
        about = {"words": words, "light": not set(words[:1]).isdisjoint(light), "ignored": ignored}
        send(connection, about | _request(), (0, 1, 2))
        answer = receive(connection)
    except OSError as error:
        answer = {"refused": str(error)}
    if "job" not in answer:
        for number, handler in own.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)
        return _not_taken(answer.get("refused", "the worker has ended"))
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"{CLIENT_NAME}{answer['job']}")
    with contextlib.suppress(OSError):
        if (status := receive(connection).get("status")) is not None:
            return int(status) if status >= 0 else 128 - int(status)
    print(f"reca: {LOST}", file=sys.stderr)
    return 1


def _request() -> dict[str, Any]:
    os.umask(mask := os.umask(0))
    return {
        "executable": sys.executable,
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k != VARIABLE},
        "umask": mask,
        "surroundings": surroundings(),
    }


def _not_taken(why: object) -> int | None:
    if os.environ.get("RECA_DEBUG") == "1":
        print(f"reca: not in the worker: {why}", file=sys.stderr)
    return None


# ---- what client and server share ------------------------------------------------------------------
def address(name: str) -> str:
    """Of a socket without a file: it is gone with its process, however that ends."""
    return f"\0{name}"


def is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to the same user."""
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def surroundings() -> list[Any]:
    """What a process has from its parent and cannot change freely: limits, priority, CPUs, groups, namespaces."""
    limits = [getattr(resource, name) for name in sorted(vars(resource)) if name[:7] == "RLIMIT_"]
    return [
        [list(resource.getrlimit(limit)) for limit in limits],
        os.getpriority(os.PRIO_PROCESS, 0),
        sorted(os.sched_getaffinity(0)),
        [os.getuid(), os.getgid(), *sorted(os.getgroups())],
        Path("/proc/self/cgroup").read_text(),
        [os.stat(f"/proc/self/ns/{name}").st_ino for name in ("mnt", "net", "pid", "user")],
    ]


def send(connection: socket.socket, message: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send a message, with open files; OSError where it is too long or the other end is gone."""
    socket.send_fds(connection, [json.dumps(message).encode()], files)


def receive(connection: socket.socket) -> dict[str, Any]:
    """The next message; empty where the other end is gone."""
    return dict(json.loads(connection.recv(MESSAGE) or b"{}"))
