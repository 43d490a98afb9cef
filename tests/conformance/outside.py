"""examples/my_model as an installed package: found on sys.path, with the record that pip would write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reca.models import registry

EXAMPLE = Path(__file__).parents[2] / "examples/my_model"


def write_record(folder: Path, name: str = "my_model", value: str = "my_model:FAMILY") -> Path:
    """A `.dist-info` of a package with an entry point."""
    record = folder / f"{name}-0.1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (record / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {value}\n")
    return folder


def install(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(registry, "brought", registry.brought.__wrapped__)


def forget() -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "my_model"]:
        del sys.modules[name]
