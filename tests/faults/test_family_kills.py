"""SIGKILL of every model family's training, at each kind of place in the data order (R1)."""

from __future__ import annotations

import pytest

from tests.align import runs
from tests.align.runs import assert_same_run
from tests.faults import family_runs as families

READS = 2 * families.STEPS


@pytest.fixture(scope="module")
def killed(tmp_path_factory, request):
    """Killed runs of all families below a folder, and the read at which each was killed, by name."""
    full = request.config.getoption("faults") == "full"
    cuts = {f"read {n}": n for n in range(1, READS + 1)} if full else families.CUTS
    root = tmp_path_factory.mktemp("families")
    child = runs.start(families.run_killed, root, cuts)
    child.join(200)
    assert child.exitcode == 0
    return root, cuts


@pytest.mark.parametrize("family", families.FAMILIES)
def test_killed_families_resume_bit_for_bit(killed, campaign, family):
    root, cuts = killed
    root = root / family
    families.run(family, root, root / "straight")
    for name, read in cuts.items():
        with campaign.case(name):
            resumed = families.run(family, root, root / name)
            assert resumed == (read - 1) // 2
            assert_same_run(root / "straight", root / name)
