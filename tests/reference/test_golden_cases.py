"""Every golden case of a family that the package holds is claimed by exactly one test file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reca.models.registry import runnable
from tests.reference import golden_cases

CASES = [(family, case) for family in runnable() for case in golden_cases.listed(family)]


def test_the_root_holds_cases():
    assert CASES, f"{golden_cases.root()} holds no golden case of {', '.join(runnable())}"


@pytest.mark.parametrize(("family", "case"), CASES)
def test_every_case_is_claimed_once(family, case):
    claimants = golden_cases.claimants(family, case)
    assert len(claimants) == 1, f"{family}/{case} is claimed by {claimants or 'no test'}"
    assert (Path(__file__).parent / claimants[0]).exists(), f"{claimants[0]} does not exist"


def test_an_unknown_case_is_claimed_by_nobody():
    assert golden_cases.claimants("showo", "a_case_from_the_future") == []


def test_the_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RECA_REFERENCE_DIR", str(tmp_path))
    assert golden_cases.listed("showo") == []  # a family may be absent
    (tmp_path / "showo" / "golden").mkdir(parents=True)
    (tmp_path / "showo" / "golden" / "new.json").write_text(json.dumps({}))
    assert golden_cases.listed("showo") == ["new"]
    monkeypatch.setenv("RECA_REFERENCE_DIR", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="no folder"):
        golden_cases.root()
