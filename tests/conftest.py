"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton loads."""

import gc
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["tests.faults.campaign", "reca.conformance.plugin"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: with one file per worker, none is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)  # keeps the order else


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the garbage collector does not walk through them again and again."""
    gc.freeze()
