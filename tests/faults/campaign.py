"""The fault campaign as a pytest plugin: fault tests count what they tried and what held.

Each test named in `tests/faults/kinds.py` belongs to one kind of fault. It counts as one case per parameter set,
or counts its own cases through the fixture `campaign`:

    def test_flips(campaign):
        for rng in campaign.draws(20, full=1000):   # a generator per case, from the seed
            with campaign.case():                   # an assertion that fails here is a case that did not hold
                ...

`pytest` runs small counts; `pytest --faults full` (or small) runs the fault tests alone, with large (or small) counts.
With `--faults-record`, as in `make reliability`, it writes docs/results/reliability.json and docs/reliability.md, too.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kinds import KINDS, Kind

ROOT = Path(__file__).resolve().parents[2]
CASES = "fault cases"  # the property of a test's report that carries its counts
_COUNTS = pytest.StashKey["Campaign"]()


class Campaign:
    """The cases of one test."""

    def __init__(self, full: bool, seed: int) -> None:
        self.full, self.seed = full, seed
        self.tried = self.held = 0
        self.failures: list[str] = []

    def draws(self, small: int, full: int) -> Iterator[random.Random]:
        """A random generator per case: `small` of them, `full` in the full campaign."""
        for number in range(full if self.full else small):
            yield random.Random(f"{self.seed}/{number}")

    @contextmanager
    def case(self, name: str = "") -> Iterator[None]:
        """One case. What it raises is reported when the test ends, after the other cases."""
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failures.append(
                f"case {self.tried} {name}: {type(error).__name__}: {error}"[:2000]
            )
        else:
            self.held += 1

    def count(self, cases: int) -> None:
        """Count cases that held; for tests whose own assertions fail at the first that does not."""
        self.tried += cases
        self.held += cases

    def settle(self) -> None:
        """Fail the test if a case did not hold or none was tried."""
        if self.failures:
            shown = "\n".join(self.failures[:10])
            pytest.fail(
                f"{len(self.failures)} of {self.tried} cases did not hold:\n{shown}", pytrace=False
            )
        assert self.tried, "no case was tried"


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """Counts the cases of this test."""
    config = request.config
    found = Campaign(config.getoption("faults") == "full", config.getoption("faults_seed"))
    request.node.stash[_COUNTS] = found
    return found


# ---- counting ----------------------------------------------------------------------------------
@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    tried, held = 1, 0
    try:
        result = yield
        found = item.stash.get(_COUNTS, None)
        if found is not None:
            found.settle()
        held = 1
        return result
    except pytest.skip.Exception:
        tried = 0
        raise
    finally:
        found = item.stash.get(_COUNTS, None)
        if found is not None and tried:
            # an assertion outside a case, with all cases held until then, is a case that did not hold
            extra = 0 if held or found.failures else 1
            tried, held = found.tried + extra, found.held
        item.user_properties.append((CASES, [tried, held]))


def test_of(nodeid: str) -> str:
    """A test's name without its parameters."""
    return nodeid.split("[")[0]


class Recorder:
    """Adds up the reports of a full campaign and writes the figures at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.began = config, time.time()
        self.cases: dict[str, list[tuple[int, int, float]]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            tried, held = dict(report.user_properties)[CASES]
            self.cases[test_of(report.nodeid)].append((tried, held, report.duration))
        elif report.when == "setup":
            self.cases[test_of(report.nodeid)].append((int(report.failed), 0, report.duration))

    def pytest_sessionfinish(self) -> None:
        from tests.faults import page

        page.write(self.figures(), ROOT)

    def figures(self) -> dict[str, Any]:
        from reca.core import artifacts

        return {
            "commit": artifacts.git_commit(ROOT),
            "seed": self.config.getoption("faults_seed"),
            "counts": self.config.getoption("faults"),
            "machine": artifacts.machine(),
            "versions": artifacts.versions(),
            "wall_seconds": round(time.time() - self.began, 1),
            "kinds": [self._figure(kind) for kind in KINDS],
        }

    def _figure(self, kind: Kind) -> dict[str, Any]:
        cases = [case for test in kind.tests for case in self.cases[test]]
        tried, held, seconds = (
            (sum(column) for column in zip(*cases, strict=True)) if cases else (0, 0, 0)
        )
        return {
            "number": kind.number, "area": kind.area, "fault": kind.fault, "holds": kind.holds,
            "tried": tried, "held": held, "seconds": round(seconds, 1), "tests": list(kind.tests),
        }  # fmt: skip


# ---- options -----------------------------------------------------------------------------------
def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--faults",
        choices=["small", "full"],
        help="run the fault tests alone, with small or with large counts",
    )
    group.addoption(
        "--faults-record",
        action="store_true",
        help="write docs/reliability.md and its figures; for a run of all fault tests",
    )
    group.addoption("--faults-seed", type=int, default=0, help="what the random cases start from")


@pytest.hookimpl(tryfirst=True)  # before Hypothesis reads its seed
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("faults") is None:
        return
    config.option.hypothesis_seed = config.getoption("faults_seed")
    is_worker = hasattr(config, "workerinput")  # of xdist, whose controller records
    if config.getoption("faults_record") and not is_worker:
        config.pluginmanager.register(Recorder(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("faults") is None:
        return
    chosen = {test for kind in KINDS for test in kind.tests}
    left = [item for item in items if test_of(item.nodeid) not in chosen]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if test_of(item.nodeid) in chosen]
