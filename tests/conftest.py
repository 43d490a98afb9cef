"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton loads."""

import gc
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from reca.config import compose

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# 3.5 ms each, of which no test sees anything: those about what reaches the disk put a recorder in its place.
os.fsync = lambda descriptor: None

pytest_plugins = ["tests.faults.campaign", "reca.conformance.plugin"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: with one file per worker, none is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)  # keeps the order else


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the garbage collector does not walk through them again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _experiments_are_composed_once() -> Iterator[None]:
    """Hydra needs 0.15 s for an experiment, and hundreds of tests read the same ones: equal files are composed once."""
    composed, known = compose.compose_plain, {}

    def remembered(experiment: str, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
        content = sha256()
        for place in (folder, *compose.brought_config()):
            for path in sorted(place.rglob("*.yaml")):
                content.update(f"{path.relative_to(place)} ".encode() + path.read_bytes())
        key = (experiment, tuple(overrides), str(folder), content.digest())
        if key not in known:
            known[key] = composed(experiment, overrides, folder)  # errors are not kept
        return deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "compose_plain", remembered)
        yield
