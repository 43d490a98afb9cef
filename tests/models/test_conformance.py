"""Every tiny model of ours fulfils the whole contract."""

from __future__ import annotations

import pytest

from reca.conformance.subject import Subject
from tests.models.test_devices import MODELS


@pytest.fixture(scope="module", params=MODELS)
def reca_subject(request, tmp_path_factory):
    model = MODELS[request.param](tmp_path_factory.mktemp("words"))
    # A VAE condition is one of the loss only.
    return Subject(model, side=16, reconstructs=request.param != "bagel_vae")


def test_contract(reca_check):
    reca_check()
