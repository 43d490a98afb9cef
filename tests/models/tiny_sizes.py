"""Sizes of the tiny test models: those of `config/scales/tiny.yaml`, so that there is one set of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reca.config.scale import sizes
from reca.core.documents import read_yaml

FILE = Path(__file__).parents[2] / "config/scales/tiny.yaml"


def network(family: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """A family's tiny `network` section, with `own` fields in place of the file's or next to them."""
    return _merged(sizes(family, own, read_yaml(FILE), FILE), own)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for name, value in own.items():
        inner = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = _merged(found[name], value) if inner else value
    return found
