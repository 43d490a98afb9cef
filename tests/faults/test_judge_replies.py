"""Ten thousand generated replies of a judge: a score in range or none, never a guess (S7)."""

from __future__ import annotations

import math

from hypothesis import given, settings

from tests.evaluation.test_replies import CORPUS, RANGES, in_range, replies


def test_generated_replies_give_a_score_in_range_or_none(campaign):
    @settings(max_examples=10_000 if campaign.full else 200, deadline=None, database=None)
    @given(replies)
    def check(reply):
        for read, (low, high) in RANGES.values():
            found = read(reply)
            values = found if isinstance(found, tuple) else () if found is None else (found,)
            assert all(in_range(value, low, high) and not math.isnan(value) for value in values)
        campaign.count(1)

    check()


def test_real_shapes_give_what_is_written_down(campaign):
    for reply, expected in CORPUS.items():
        with campaign.case(reply[:40]):
            found = {name: read(reply) for name, (read, _) in RANGES.items()}
            assert {name: score for name, score in found.items() if score is not None} == expected
