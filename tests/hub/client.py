"""Commands of this process that talk to a loopback hub in place of the real one."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import huggingface_hub.constants
import pytest

from tests.hub.server import Hub, Repository


@contextmanager
def served(
    repositories: Mapping[str, Repository], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A hub with these repositories; an error if another host was asked, for files, telemetry or a token."""
    hub = Hub(repositories)
    # the constants were read from the environment when the library was imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in hub.environment.items():
        monkeypatch.setenv(name, value)
    asked, lookup = set(), socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: asked.add(host) or lookup(host, *more, **named),
    )
    with hub.serving():
        yield hub
    assert asked <= {"127.0.0.1", "localhost"}, "the real hub is never asked"
