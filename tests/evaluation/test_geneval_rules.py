"""GenEval's rules where the golden data has no case (the cases are in tests/reference/test_benchmark_geneval.py)."""

from __future__ import annotations

from reca.evaluation.tasks import geneval_rules as rules


def test_no_rows_give_no_number() -> None:
    assert rules.summarise([])["overall"] is None


def test_ties_keep_the_order_of_the_input() -> None:
    rows = [{"class": "cat", "box": [i, 0, i + 1, 1], "score": 0.5} for i in range(20)]
    kept = rules.keep(rows, 0.3)["cat"]
    assert [row["box"][0] for row in kept] == list(range(rules.MAX_PER_CLASS))
