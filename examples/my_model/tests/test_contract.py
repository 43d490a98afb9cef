"""Every check of reca's contract as a test, of the model that pyproject.toml names."""


def test_contract(reca_check):
    reca_check()
