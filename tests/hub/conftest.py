"""A working folder with the real catalogue, and an empty hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.benchmarks import CATALOGUE
from tests.hub.client import served
from tests.hub.server import Hub


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and a working folder with the real catalogue and no lock."""
    work_in(tmp_path, monkeypatch)
    with served({}, monkeypatch) as server:
        yield server


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that has the real catalogue and no lock."""
    (folder / "config").mkdir()
    shutil.copy(CATALOGUE, folder / "config")
    monkeypatch.chdir(folder)
