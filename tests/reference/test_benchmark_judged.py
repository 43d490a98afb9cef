"""WISE, ImgEdit, GEdit and T2I-CompBench: reading replies and aggregating, against the official code."""

from __future__ import annotations

import pytest

from reca.evaluation.tasks import gedit, imgedit, t2i_compbench, wise
from tests.reference.benchmark_cases import only

TIGHT = 1e-9


# ---- WISE ----------------------------------------------------------------------------------------
def test_wise_replies():
    for case in only("wise", "replies", "sets")["replies"]:
        found = {n: wise.SENTINEL if v is None else v for n, v in wise.parse(case["reply"]).items()}
        assert found == case["scores"], case


def test_wise_sets():
    for case in only("wise", "replies", "sets")["sets"]:
        assert set(case["scores"]) == set(wise.FILES)
        rows = [row for name in wise.FILES for row in case["scores"][name]]
        found = wise.summary(rows, emulate_sentinels=True)
        expected = case["expected"]
        for name, value in expected["by_category"].items():
            assert found[name] == (None if value is None else pytest.approx(value, abs=TIGHT))
        for ours, theirs in (
            ("overall_unweighted", "overall_reca"),
            ("overall_weighted", "overall_weighted_by_prompts"),
        ):
            value = expected[theirs]
            assert found[ours] == (None if value is None else pytest.approx(value, abs=TIGHT))
        assert expected["official_script_exit_ok"] == (found["overall_unweighted"] is not None)


# ---- ImgEdit -------------------------------------------------------------------------------------
def test_imgedit_replies():
    for case in only("imgedit", "replies", "sets")["replies"]:
        assert imgedit.parse(case["reply"]) == case["score"], case


def test_imgedit_sets():
    for case in only("imgedit", "replies", "sets")["sets"]:
        found = {key: imgedit.parse(reply) for key, reply in case["replies"].items()}
        scored = {key: value for key, value in found.items() if value is not None}
        assert scored == case["per_key"]
        summary = imgedit.summary((case["types"].get(k) or "", v) for k, v in scored.items())
        types = {n.removeprefix("types."): v for n, v in summary.items() if n.startswith("types.")}
        expected = dict(case["by_type_reca"])
        assert summary["overall_samples"] == expected.pop("overall")
        assert types == expected == case["by_type_pku"]
        assert case["uge_style_mean"] == pytest.approx(summary["overall_samples"], abs=0.005)


# ---- GEdit ---------------------------------------------------------------------------------------
def is_score(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_gedit_replies():
    """Where the official code has a score, ours is the same; where it fails or holds a text, ours is none."""
    for case in only("gedit", "groups", "parses", "sets")["parses"]:
        expected = case["parsed"]
        if isinstance(expected, dict) and "error" not in expected:
            assert gedit.parse(case["reply"]) == expected, case
        elif expected is False or expected == "rate_limit_exceeded":
            assert gedit.parse(case["reply"]) is None, case
        least = case["min_score"]
        assert gedit.official_minimum(case["reply"]) == (least if is_score(least) else None), case
        listed = expected["score"] if is_score(least) else [None]
        inside = all(is_score(value) and 0 <= value <= gedit.HIGHEST for value in listed)
        assert gedit.score(case["reply"]) == (least if inside else None), case


@pytest.mark.parametrize("language", ["en", "cn"])
@pytest.mark.parametrize("subset", [False, True])
def test_gedit_sets(language, subset):
    golden = only("gedit", "groups", "parses", "sets")
    assert tuple(golden["groups"]) == gedit.GROUPS
    for case in golden["sets"]:
        rows = [
            (row["group"], row["sc"], row["pq"])
            for row in case["rows"]
            if row["language"] == language and (row["intersection"] or not subset)
        ]
        found, suffix = gedit.summary(rows), "_inter" if subset else ""
        averages = {"sc": "avg_semantics", "pq": "avg_quality", "o": "avg_overall"}
        for name, average in averages.items():
            expected = dict(case["expected"][language][name.upper() + suffix])
            assert found[name] == pytest.approx(expected.pop(average), abs=TIGHT)
            for group, value in expected.items():
                assert found[f"{name}.{group}"] == pytest.approx(value, abs=TIGHT)


# ---- T2I-CompBench -------------------------------------------------------------------------------
def test_compbench_replies():
    for case in only("t2i_compbench", "replies", "aggregation")["replies"]:
        found = t2i_compbench.parse(case["reply"])
        assert (-1 if found is None else found) == case["score"], case


def test_compbench_aggregation():
    for case in only("t2i_compbench", "replies", "aggregation")["aggregation"]:
        found = t2i_compbench.overall(case["category_means"])
        assert found["complex_composite"] == pytest.approx(case["complex_composite"], abs=TIGHT)
        assert found["overall_eight"] == pytest.approx(case["overall_script_8way"], abs=TIGHT)
        assert found["overall_ten"] == pytest.approx(case["overall_paper_10way"], abs=TIGHT)
