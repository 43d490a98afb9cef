"""A process with libraries loaded that forks for each command. Runs as a script, and holds nothing of reca.

It is started in the environment and folder of the command. Between it and each job is a supervisor, a fork that does
nothing but wait: it ends the job with its client, and stays responsive while the template imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

MESSAGE = 1 << 20
NAMES = 1000  # of modules in one message
UNFIT = 3  # exit status of a template that must not fork
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
OWN = {"reca", "reca_kernels", "tests"}
LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")
PLACES = tuple(sysconfig.get_path(name) + os.sep for name in LIBRARIES)


def main() -> None:
    """Serve; in each job, run its command as `python -m reca` does."""
    requests, reports = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    for connection in (requests, reports):
        connection.set_inheritable(False)
    sys.path[0] = os.getcwd()
    die_with(os.getppid())
    gc.disable()  # what it holds stays, and pages that no collection touches are shared with jobs
    light = serve(requests)["light"]
    loaded = set(sys.modules)
    try:
        runpy.run_module("reca", run_name="__main__", alter_sys=True)
    finally:
        with contextlib.suppress(Exception):
            report(reports, light, loaded)


def serve(requests: socket.socket) -> dict[str, Any]:
    """Answer requests until the server closes the connection; returns only in a job, its request."""
    supervisors: list[int] = []
    own = os.getpid()
    while True:
        data, files, _, _ = socket.recv_fds(requests, MESSAGE, 4)
        supervisors = [pid for pid in supervisors if not os.waitpid(pid, os.WNOHANG)[0]]
        message = json.loads(data or b"{}")
        if "modules" in message:
            load(message["modules"])
            continue
        why = unfit() if message else None
        if message and not why:
            supervisors.append(os.fork())
            if not supervisors[-1]:
                requests.close()  # or the server would not see that the template ends
                connection = socket.socket(fileno=files.pop())
                supervise(connection, own)
                become(message, files, connection)
                return dict(message)
            for file in files:
                os.close(file)
            continue
        if why:
            answer(socket.socket(fileno=files.pop()), refused=why)
        requests.close()
        for pid in supervisors:  # their jobs go on to their ends
            os.waitpid(pid, 0)
        os._exit(UNFIT if why else 0)


def load(names: Iterable[str]) -> None:
    """Import what earlier jobs have imported; what cannot be imported by its name alone is left to them."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


def unfit() -> str | None:
    """Why forks of this process would not be like a fresh start; None if they are."""
    if len(os.listdir("/proc/self/task")) > 1:
        return "a library has started a thread"
    if OWN & sys.modules.keys():
        return "a library has imported reca"
    torch = sys.modules.get("torch")
    return "a library has started CUDA" if torch and torch.cuda.is_initialized() else None


def bad_fork() -> str | None:
    """Why this fork cannot use the GPU; None if it can, or there is none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return "a library has started CUDA" if cuda and cuda._is_in_bad_fork() else None


def supervise(connection: socket.socket, template: int) -> None:
    """Fork the job, in which alone this returns; then wait until it ends or its client does, and end."""
    die_with(template)
    own = os.getpid()
    if not (job := os.fork()):
        return die_with(own)
    ended = os.pidfd_open(job)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(connection, select.POLLIN)
    while ended not in dict(waiting.poll()):
        said = b""
        with contextlib.suppress(OSError):
            said = connection.recv(MESSAGE)
        os.kill(job, json.loads(said)["signal"] if said else signal.SIGKILL)
        if not said:
            waiting.unregister(connection)
    answer(connection, status=os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]))
    os._exit(0)


def die_with(parent: int) -> None:
    """Be killed when the parent, of this process id, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def answer(connection: socket.socket, **message: Any) -> None:
    """Tell the client, if it is still there."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps(message).encode())


def become(message: dict[str, Any], files: list[int], connection: socket.socket) -> None:
    """Make this process what a shell would have started for the command, and say so."""
    if why := bad_fork():
        answer(connection, refused=why)
        os._exit(0)
    os.chdir(message["folder"])
    os.umask(message["umask"])
    os.environ.clear()
    os.environ.update(message["environment"])
    for number in message["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for stream, file in enumerate(files):
        os.dup2(file, stream)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    sys.argv, sys.orig_argv[1:] = ["-m", *message["words"]], ["-m", "reca", *message["words"]]
    importlib.invalidate_caches()
    if random := sys.modules.get("numpy.random"):
        random.seed()  # Python's own is seeded by the fork
    gc.enable()
    answer(connection, job=os.getpid())
    connection.close()


def report(reports: socket.socket, light: bool, loaded: set[str]) -> None:
    """Tell the server what this job imported beyond what it was given; nothing if the server is busy."""
    found = [
        n for n, module in list(sys.modules.items()) if n not in loaded and is_library(n, module)
    ]
    if not found:
        return
    families = {entry.module.partition(".")[0] for entry in entry_points(group="reca.models")}
    found = [name for name in found if name.partition(".")[0] not in OWN | families]
    for start in range(0, len(found), NAMES):
        part = {"light": light, "names": found[start : start + NAMES]}
        reports.send(json.dumps(part).encode(), socket.MSG_DONTWAIT)


def is_library(name: str, module: ModuleType) -> bool:
    """Whether a module is Python's or an installed package's, under its own name."""
    spec = getattr(module, "__spec__", None)
    return spec is not None and spec.name == name and str(spec.origin).startswith(PLACES)


if __name__ == "__main__":
    main()
