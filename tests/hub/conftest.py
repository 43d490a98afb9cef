"""A working folder with the real catalogue, and an empty hub."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hub.server import Hub

CATALOGUE = Path(__file__).parents[2] / "config/sources.yaml"


@contextmanager
def site_in(folder: Path) -> Iterator[Hub]:
    """An empty hub, and `folder` as a working folder with the real catalogue and no lock."""
    (folder / "config").mkdir()
    shutil.copy(CATALOGUE, folder / "config")
    asked, lookup = set(), socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *more, **named: asked.add(host) or lookup(host, *more, **named),
        )
        with Hub({}).serving(patch) as server:
            yield server
    assert asked <= {"127.0.0.1", "localhost"}, "the real hub is never asked"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Hub]:
    with site_in(tmp_path) as server:
        yield server
