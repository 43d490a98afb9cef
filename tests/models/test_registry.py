"""The entries of the families say what their code says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

from reca.models.contract import Edits
from reca.models.registry import FAMILIES, editing, family_module, pretraining_module, runnable

GENERAL = {"guidance", "steps", "temperature"}


@pytest.mark.parametrize("name", runnable())
def test_an_entry_is_what_the_family_has(name: str) -> None:
    module = importlib.import_module(family_module(name))
    (model,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    )
    assert model.family == name
    assert issubclass(model, Edits) == FAMILIES[name].edits == (name in editing())
    assert importlib.import_module(pretraining_module(name)).PARTS
    if (options := FAMILIES[name].sampler_options) is not None:
        sampler = importlib.import_module(f"reca.models.{name}.sampler")
        named = [
            {field.name for field in fields(kind)}
            for kind in vars(sampler).values()
            if isinstance(kind, type) and is_dataclass(kind) and hasattr(kind, "of")
        ]
        (known,) = (names for names in named if "guidance" in names)
        assert known - GENERAL == set(options)


def test_unknown_families_are_named() -> None:
    for lookup in (family_module, pretraining_module):
        with pytest.raises(ValueError, match=r"'unknown'.*choose one of: showo, harmon"):
            lookup("unknown")


def test_configuration_reads_the_entries_without_torch() -> None:
    code = "import sys, reca.config.validate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
