"""A working folder with the real catalogue, and an empty hub."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import served
from tests.hub.server import Hub

CATALOGUE = Path(__file__).parents[2] / "config/sources.yaml"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and a working folder with the real catalogue and no lock."""
    (tmp_path / "config").mkdir()
    shutil.copy(CATALOGUE, tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    asked, lookup = set(), socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: asked.add(host) or lookup(host, *more, **named),
    )
    with served({}, monkeypatch) as server:
        yield server
    assert asked <= {"127.0.0.1", "localhost"}, "the real hub is never asked"
