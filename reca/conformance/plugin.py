"""The suite as a pytest plugin: one test per check, for packages that add a model family.

    # tests/test_contract.py
    import pytest
    from reca.conformance.subject import Subject

    @pytest.fixture(scope="module")
    def reca_subject():
        return Subject(my_model.tiny())

    def test_contract(reca_check):
        reca_check()

Without that fixture the model is given by `pytest --reca-model NAME`, where NAME is as for `reca check-model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from reca.conformance.subject import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--reca-model`."""
    parser.getgroup("reca").addoption(
        "--reca-model",
        metavar="PATH_OR_FAMILY",
        help="the model of the fixture reca_subject: a family, a model folder or a model configuration",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that use the fixture `reca_check` by check."""
    if "reca_check" in metafunc.fixturenames:
        from reca.conformance.suite import CHECKS

        metafunc.parametrize("reca_check", list(CHECKS), indirect=True)


@pytest.fixture(scope="session")
def reca_subject(request: pytest.FixtureRequest) -> Subject:
    """The model of `--reca-model`; packages may override this fixture."""
    from reca.conformance.resolve import subject_of

    named = request.config.getoption("--reca-model")
    if named is None:
        pytest.fail("define the fixture reca_subject, or give --reca-model", pytrace=False)
    return subject_of(named)


@pytest.fixture
def reca_check(request: pytest.FixtureRequest, reca_subject: Subject) -> Callable[[], None]:
    """A function that runs one check, and fails or skips the test with its message."""
    from reca.conformance.suite import run_check

    def check() -> None:
        outcome = run_check(reca_subject, request.param)
        if outcome.status == "failed":
            pytest.fail(f"{outcome.check}: {outcome.line}", pytrace=False)
        if outcome.status == "skipped":
            pytest.skip(outcome.line)

    return check
