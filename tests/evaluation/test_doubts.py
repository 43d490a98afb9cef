"""Replies that a published rule reads only in part: kept as it says, counted by kind, and shown beside the score."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings

from reca.commands.score_folder import summary_text
from reca.config.schema import BenchmarkConfig
from reca.core.artifacts import read_json
from reca.evaluation import readings
from reca.evaluation.score import write
from reca.evaluation.tasks import gedit, imgedit, t2i_compbench, wise
from reca.inference.items import Prompt
from reca.report import paper
from tests.evaluation.test_replies import LONG, replies
from tests.report import test_paper

PART, LOOSE = [readings.INCOMPLETE], [readings.INEXACT]
WISE = "Consistency: {}\nRealism: 1\nAesthetic Quality: 0"
DOUBTS = {
    wise: {
        WISE.format(2): [],
        "Consistency: 2\nRealism: 1": PART,
        WISE.format("10"): LOOSE,
        WISE.format("2.5"): LOOSE,
        WISE.format("1/2"): LOOSE,
        WISE.format("0 to 2"): LOOSE,
        **{
            WISE.format(one): LOOSE
            for one in ("1e9", "1~2", "1 \u2014 2", "1\u00bd", "1 and 2", "0 1 2")
        },
        **{WISE.format(one): [] for one in ("2 - good", "2.", "2, as", "2 ", "2*")},
        WISE.format(1) + "\nConsistency: 2": LOOSE,
        WISE.format(1) + "\nConsistency: 1": [],
        "Consistency: 10": PART + LOOSE,
        "I cannot rate it.": [],
    },
    imgedit: {
        "Prompt Compliance: 4\nVisual Naturalness: 5\nPhysical & Detail Integrity: 3": [],
        "Prompt Compliance: 4\nVisual Naturalness: 5": PART,
        "Prompt Compliance: 4\nVisual Naturalness: 5/5\nPhysical & Detail Integrity: 3": PART,
        "A: 1\nB: 2\nC: 3\nD: 4": LOOSE,
        "Prompt Compliance: four": [],
    },
    gedit: {
        '{"score": [7, 8]}': [],
        "[7, 8]": [],
        '{"score": 7}': PART,
        '{"score": [7]}': PART,
        "7": PART,
        '{"score": [7, 8, 9]}': LOOSE,
        '{"score": [7, 8], "score": [1, 1]}': LOOSE,
        '{"score": [70]}': [],
    },
    t2i_compbench: {
        '{"score": 85}': [],
        '{"score": "85"}': [],
        '{"score": 0.85}': LOOSE,
        '{"score": 85/100}': LOOSE,
        '{"score": "85/100"}': LOOSE,
        '{"score": "85%"}': LOOSE,
        '{"score": 59.5}': LOOSE,
        '{"score": 85} or {"score": 3}': LOOSE,
        "Score: 85": [],
    },
}


@pytest.mark.parametrize("module", DOUBTS, ids=lambda module: module.__name__.split(".")[-1])
def test_what_a_rule_reads_only_in_part(module):
    for reply, expected in DOUBTS[module].items():
        assert module.doubts(reply) == expected, reply


@settings(max_examples=500, deadline=None)
@given(replies)
def test_any_reply_has_doubts_or_none(reply):
    for module in DOUBTS:
        found = module.doubts(reply)
        assert set(found) <= set(readings.JUDGED) and len(set(found)) == len(found)


@pytest.mark.parametrize("how", LONG)
def test_very_long_replies_take_no_time(how):
    begin = time.process_time()
    for module in DOUBTS:
        module.doubts(LONG[how])
    assert time.process_time() - begin < 5


ITEMS = {
    "imgedit": [Prompt(n, "p", "add") for n in "abc"],
    "gedit": [Prompt(n, "p", "ps_human", {}) for n in "abc"],
    "t2i_compbench": [Prompt(n, "p", "color") for n in "abc"],
    "wise": [Prompt(n, "p", "Cultural") for n in "123"],
}
REPLIES = {  # the first plain, the second doubtful, the third unreadable
    "imgedit": (imgedit, "A: 4\nB: 4\nC: 4", "A: 2", "no", {"incomplete": ["b"], "inexact": []}, 3.0),
    "gedit": (gedit, "[4, 4]", "9", "no", {"incomplete": ["b/SC", "b/PQ"], "inexact": []}, 6.5),
    "t2i_compbench": (t2i_compbench, '{"score": 80}', '{"score": 0.8}', "no",
                      {"incomplete": [], "inexact": ["b"]}, None),
    "wise": (wise, WISE.format(2), "Consistency: 2", "no", {"incomplete": ["2"], "inexact": []}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_counts_stand_beside_the_score_in_summary_and_tables(tmp_path, name):
    module, *said, expected, overall = REPLIES[name]
    parts = ("/SC", "/PQ") if name == "gedit" else ("",)
    given = {
        f"{item.id}{part}": ("reply", reply)
        for item, reply in zip(ITEMS[name], said, strict=True)
        for part in parts
    }
    found = module.grade(ITEMS[name], given, partial=True)
    assert found.readings == expected and found.summary["overall"] == overall
    described = {"run": "reca-42", "split": "test", "seed": 42}
    write(BenchmarkConfig(kind=name), found, tmp_path, described)
    kept = read_json(tmp_path / "scores.json")
    assert kept["readings"] == {k: {"count": len(v), "ids": v} for k, v in expected.items()}
    text = readings.text(readings.counts(kept))
    assert text and f"replies: {text} (" in summary_text(kept)


def test_counts_of_all_seeds_stand_in_the_papers_tables(tmp_path):
    doubtful = {"incomplete": {"count": 2, "ids": ["a", "b"]}, "inexact": {"count": 0, "ids": []}}
    for seed, more in ((42, {"readings": doubtful}), (43, {"readings": doubtful}), (44, {})):
        test_paper.score(tmp_path, f"reca-{seed}", 0.85, **more)
    cell = test_paper.cell(tmp_path, "per_model", "Harmon-1.5B", "geneval_overall", "reca")
    assert paper.shown(cell).endswith("(replies: 4 incomplete)")
    paper.build(tmp_path, tmp_path / "out")
    for name in (paper.TEXT, paper.PAGE):
        text = (tmp_path / "out" / name).read_text()
        assert "4 incomplete" in text and readings.MEANING[readings.INCOMPLETE] in text
