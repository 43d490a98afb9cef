"""The benchmark of cached rows reads the same on both sides, and its recorded result is near a plain gather."""

from __future__ import annotations

import json
from pathlib import Path

from perf import cache_reads as bench

RESULT = Path(__file__).parents[2] / "docs/results/cache_reads.json"


def test_both_sides_read_the_same_rows():
    setting = bench.Setting({"understanding": (3, 2)}, {"target": (5,)}, images=20, batch=3)
    found = bench.measure("tiny", setting, repeats=1)
    assert found["row_bytes"] == 2 * 3 * 2 + 2 * 5
    assert found["speedup"] > 0


def test_the_recorded_result_is_near_a_plain_gather():
    found = json.loads(RESULT.read_text())["settings"]
    assert [setting["model"] for setting in found] == list(bench.SETTINGS)
    for setting in found:
        if setting["row_bytes"] > 2**14:
            assert setting["speedup"] >= 0.7
        else:  # of a small row, Python's own time is the most
            assert setting["microseconds_per_read"]["cache"] < 100
