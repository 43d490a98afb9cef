"""Every golden file of the benchmarks is claimed by exactly one test file that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reference import benchmark_cases


def test_there_are_cases():
    assert benchmark_cases.listed()


@pytest.mark.parametrize("name", benchmark_cases.listed())
def test_every_file_is_claimed_once(name):
    owners = [file for file, names in benchmark_cases.CLAIMS.items() if name in names]
    assert len(owners) == 1, f"{name} is claimed by {owners or 'no test'}"
    assert (Path(__file__).parent / owners[0]).exists()


def test_an_unknown_part_fails(monkeypatch):
    monkeypatch.setattr(benchmark_cases, "load", lambda name: {"about": "", "a": 1, "new": 2})
    with pytest.raises(AssertionError, match="parts"):
        benchmark_cases.only("dpg", "a")
