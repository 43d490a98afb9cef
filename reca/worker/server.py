"""The server: passes commands on to templates, and learns from finished jobs what templates should import."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reca.worker.client import MESSAGE, VARIABLE, address, is_own, receive, send, surroundings
from reca.worker.template import NAMES, UNFIT

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).with_name("template.py")
TEMPLATES = 4  # kept at most; each holds its own copy of the libraries
PATIENCE = 5.0  # seconds for a client's request
# Differ from job to job or run to run, and no library reads them: RECA_RUN is the mark of a run (`core.processes`).
VOLATILE = {"_", "OLDPWD", "PWD", "SHLVL", "RECA_RUN"}

# The import of pyarrow would start a thread, in which its second allocator returns memory to the system.
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}


@contextlib.contextmanager
def shared_worker(local: bool = True) -> Iterator[None]:
    """A worker for the commands that are started in the block: the one that the environment names, or a new one.

    A new one only where they are `local`, of this machine and environment, and on Linux.
    """
    if not local or os.environ.get(VARIABLE) or sys.platform != "linux":
        yield
        return
    with serving() as name:
        os.environ[VARIABLE] = name
        try:
            yield
        finally:
            del os.environ[VARIABLE]


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """A worker that ends with the block, or with this process; its name."""
    name = f"reca-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address(name))
        listener.listen(socket.SOMAXCONN)
        # a session of its own: Ctrl-C reaches jobs through their clients, once
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno())], cwd=ROOT, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()],
        )  # fmt: skip
    assert process.stdin
    try:
        yield name
    finally:
        process.stdin.close()
        process.wait()


class Refused(Exception):
    """The text says why a command is not for this worker."""


class Template:
    """A running template, and the modules that it has been asked to import."""

    def __init__(self, request: dict[str, Any], reports: socket.socket) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setblocking(False)
        self._told: set[str] = set()
        environment = _lasting(request) | NO_THREADS
        with theirs:
            files = [theirs.fileno(), reports.fileno()]
            self._process = subprocess.Popen(
                [request["executable"], TEMPLATE, *map(str, files)], env=environment, cwd=request["folder"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=files,
            )  # fmt: skip

    def give(self, modules: Sequence[str], request: dict[str, Any], files: Sequence[int]) -> None:
        """Pass a command on, and before it what to import; BlockingIOError where the template has much to do."""
        new = [name for name in modules if name not in self._told]
        for start in range(0, len(new), NAMES):
            part = new[start : start + NAMES]
            send(self._requests, {"modules": part})
            self._told.update(part)
        send(self._requests, request, files)

    def is_unfit(self) -> bool:
        """Whether a template that takes nothing more has found that it must not fork; else it was killed."""
        return self._process.poll() in (None, UNFIT)

    def retire(self) -> None:
        """Take no more commands; its jobs go on."""
        self._requests.close()

    def end(self) -> None:
        """End it with its jobs."""
        self._process.kill()
        self._process.wait()


class Server:
    """What is known of commands so far, and the templates."""

    def __init__(self) -> None:
        self._own = surroundings()
        # What jobs have imported, in the order of imports: light ones, and the others.
        self._names: dict[bool, dict[str, None]] = {True: {}, False: {}}
        self._templates: dict[str, Template] = {}
        self._retired: list[Template] = []
        self._unfit: set[str] = set()
        self._reports, self._reporter = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def run(self, listener: socket.socket, owner: int) -> None:
        """Serve until the owner closes its end of the pipe `owner`, or ends."""
        with selectors.DefaultSelector() as waiting:
            for source in (listener, self._reports, owner):
                waiting.register(source, selectors.EVENT_READ)
            while owner not in (ready := [key.fileobj for key, _ in waiting.select()]):
                if self._reports in ready:
                    self._learn(**receive(self._reports))
                if listener in ready:
                    with listener.accept()[0] as connection:
                        self._serve(connection)
        for template in (*self._templates.values(), *self._retired):
            template.end()

    def _learn(self, light: bool, names: Sequence[str]) -> None:
        self._names[light].update(dict.fromkeys(names))

    def _serve(self, connection: socket.socket) -> None:
        files: list[int] = []
        try:
            connection.settimeout(PATIENCE)
            if not is_own(connection):
                raise Refused("the worker is another user's")
            data, files, _, _ = socket.recv_fds(connection, MESSAGE, 3)
            self._pass_on(json.loads(data), [*files, connection.fileno()])
        except Exception as error:  # whatever is wrong with a request: the next ones are served
            with contextlib.suppress(OSError):
                send(connection, {"refused": str(error)})
        finally:
            for file in files:
                os.close(file)

    def _pass_on(self, request: dict[str, Any], files: Sequence[int]) -> None:
        if request.pop("surroundings") != self._own:
            raise Refused("limits, priority, CPUs, groups or namespaces differ from the worker's")
        light = request["light"]
        modules = [*self._names[True], *(() if light else self._names[False])]
        key = json.dumps([request["executable"], request["folder"], light, _lasting(request)])
        for _ in range(2):  # one that was killed is replaced
            if key in self._unfit:
                raise Refused("libraries that start threads or CUDA cannot be forked")
            try:
                return self._template(key, request).give(modules, request, files)
            except (BrokenPipeError, ConnectionResetError):
                gone = self._templates.pop(key)
                self._retired.append(gone)
                if gone.is_unfit():
                    self._unfit.add(key)
        raise Refused("its template ends at once")

    def _template(self, key: str, request: dict[str, Any]) -> Template:
        """The template of a command, which is then the last to be dropped."""
        found = self._templates.pop(key, None) or Template(request, self._reporter)
        self._templates[key] = found
        if len(self._templates) > TEMPLATES:
            oldest = self._templates.pop(next(iter(self._templates)))
            oldest.retire()
            self._retired.append(oldest)
        return found


def _lasting(request: dict[str, Any]) -> dict[str, str]:
    return {k: v for k, v in request["environment"].items() if k not in VOLATILE}


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own:
        own.set_inheritable(False)
        Server().run(own, sys.stdin.fileno())
