"""Freed memory stays with the process, unless its environment says otherwise."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from reca.core.allocator import SETTINGS

FAULTS = """
import resource
from reca.core.allocator import keep_freed_memory
kept = {keep}
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        blocks = [np.ones(200_000) for _ in range(20)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def found(keep: str, **environment: str) -> tuple[bool, int]:
    """Whether it was set, and page faults of a thousand blocks of 1.6 MB."""
    said = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.split()
    return said[0] == "True", int(said[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    kept, few = found("keep_freed_memory()")
    _, many = found("False")
    assert kept and few * 10 < many


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_environment_sets_stays(name: str) -> None:
    assert found("keep_freed_memory()", **{name: ""})[0] is False
