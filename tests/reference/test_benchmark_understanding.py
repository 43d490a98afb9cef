"""MME, POPE, GQA, MMMU, SEED, MMBench and MMVP against the official scorers (InternVL lineage, lmms-eval)."""

from __future__ import annotations

import pytest

from reca.evaluation import vqa_text
from reca.evaluation.tasks import gqa, mmbench, mme, mmmu, mmvp, pope, seed
from tests.reference.benchmark_cases import only

GOLDEN = only(
    "understanding",
    "mme_postprocess",
    "mme",
    "pope",
    "mmmu_multiple_choice",
    "mmmu_open",
    "mmbench_postprocess",
    "mmvp_postprocess",
    "mmvp_pairs",
    "gqa_exact_match_lower_strip",
    "seedbench",
    "evalai_answer_processor",
    "textvqa_soft_accuracy",
)
TIGHT = 1e-9


def test_mme_postprocess():
    for case in GOLDEN["mme_postprocess"]:
        assert mme.postprocess(case["reply"]) == case["out"], case


@pytest.mark.parametrize("index", range(len(GOLDEN["mme"])))
def test_mme(index):
    case = GOLDEN["mme"][index]
    tasks = {
        name: [(picture, truth, reply) for picture, _, truth, reply in rows]
        for name, rows in case["answers"].items()
    }
    found, expected = mme.summary(tasks), case["expected"]
    assert found["perception"] == pytest.approx(expected["perception"], abs=TIGHT)
    assert found["cognition"] == pytest.approx(expected["cognition"], abs=TIGHT)
    for name, value in expected["tasks"].items():
        assert found[f"tasks.{name}"] == pytest.approx(value, abs=TIGHT)
    found, expected = mme.summary(tasks, "lmms_eval"), case["expected_lmms_eval"]
    assert found["perception"] == pytest.approx(expected["mme_perception_score"], abs=TIGHT)
    assert found["cognition"] == pytest.approx(expected["mme_cognition_score"], abs=TIGHT)


POPE_NAMES = {
    "Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1",
    "Yes ratio": "yes_ratio", "TP": "tp", "FP": "fp", "TN": "tn", "FN": "fn",
}  # fmt: skip


@pytest.mark.parametrize("index", range(len(GOLDEN["pope"])))
def test_pope(index):
    case = GOLDEN["pope"][index]
    found = pope.summary(case["labels"], case["answers"])
    assert {POPE_NAMES[k]: v for k, v in case["expected"].items()} == pytest.approx(
        found, abs=TIGHT
    )
    found = pope.lmms_eval_summary(case["labels"], case["answers"])
    assert found == pytest.approx(case["expected_lmms_eval"], abs=TIGHT)


def test_mmmu_multiple_choice():
    for case in GOLDEN["mmmu_multiple_choice"]:
        assert case["random_fallback"] == (case["pred"] is None)
        assert list(case["options"]) == case["choices"]
        assert mmmu.parse_choice(case["reply"], case["options"]) == case["pred"], case


def test_mmmu_open():
    for case in GOLDEN["mmmu_open"]:
        found = mmmu.parse_open(case["reply"])
        assert found == set(case["parsed_set"]), case
        assert mmmu.correct_open(case["gold"], found) == case["correct"], case


def test_mmmu_open_reads_on_where_nothing_follows_a_key_phrase():
    for reply in ("The value is \n12.5", "The area of the circle is  \n12.5 square metres"):
        assert mmmu.correct_open("12.5", mmmu.parse_open(reply))


def test_letter_rules():
    for case in GOLDEN["mmbench_postprocess"]:
        assert mmbench.letter(case["reply"], case["options"]) == case["pred"], case
    for case in GOLDEN["mmvp_postprocess"]:
        assert mmbench.letter(case["reply"], case["options"], None) == case["pred"], case


def test_mmvp_pairs():
    for case in GOLDEN["mmvp_pairs"]:
        right = [row["answer"] == row["gt"] for row in case["rows"]]
        assert mmvp.pairs(right) == pytest.approx(case["accuracy"], abs=TIGHT)


def test_gqa():
    for case in GOLDEN["gqa_exact_match_lower_strip"]:
        rows = [(row["answer"], row["annotation"]) for row in case["entries"]]
        assert gqa.summary(rows)["exact_match"] == pytest.approx(case["exact_match"], abs=TIGHT)


def test_seed():
    for case in GOLDEN["seedbench"]:
        assert all(seed.parse(row["reply"]) == row["pred"] for row in case["rows"])
        right = [seed.correct(row["reply"], row["answer"]) for row in case["rows"]]
        assert sum(right) / len(right) == pytest.approx(case["accuracy"], abs=TIGHT)


def test_answer_texts():
    for case in GOLDEN["evalai_answer_processor"]:
        assert vqa_text.normalise(case["raw"]) == case["out"], case
    for case in GOLDEN["textvqa_soft_accuracy"]:
        found = vqa_text.soft_accuracy(case["pred_answer"], case["gt_answers"])
        assert found == pytest.approx(case["score"], abs=TIGHT), case
