def test_contract(reca_check):
    reca_check()
