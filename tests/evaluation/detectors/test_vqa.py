"""Answers to DPG-Bench's questions: scorers of transformers with tiny networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reca.config.schema import JudgeConfig
from reca.core.artifacts import Stage
from reca.evaluation.detectors import vqa
from reca.evaluation.detectors.local_judge import LocalJudge
from reca.evaluation.judges.requests import JudgeRequest, Picture
from reca.inference.imageset import png
from tests.evaluation import tiny_networks as tiny


def picture(seed):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    )


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    with Stage("fetch", folder, inputs={}, section={}) as stage:
        tiny.chat_folder(stage.staging)
    return folder


def test_blip_answers_each_question_by_itself(tmp_path):
    scorer = vqa.BlipVqa(tiny.blip_folder(tmp_path / "blip"))
    asked = ["is there a cat ?", "is the dog red or blue ?"]
    together = scorer(picture(0), asked)
    assert together == [scorer(picture(0), [question])[0] for question in asked]


def test_a_chat_model_gives_one_word(chat):
    answers = vqa.ChatModel(chat)(picture(0), ["is there a cat ?", "is there a dog ?"])
    assert len(answers) == 2 and all(len(answer.split()) <= 1 for answer in answers)


def test_every_patch_of_every_picture_has_its_token(chat):
    model = vqa.ChatModel(chat)
    for pictures in (1, 2):
        parts = [*(picture(i) for i in range(pictures)), "is there a cat ?"]
        inputs = model._inputs(parts, "you are helpful")
        patches = sum(int(grid.prod()) // 4 for grid in inputs["image_grid_thw"])
        is_image = inputs["input_ids"] == model.model.config.image_token_id
        assert int(is_image.sum()) == patches == int(inputs["mm_token_type_ids"].sum())
        with torch.no_grad():
            assert model.model(**inputs).logits.isfinite().all()


def test_what_is_seen_matters(chat):
    model = vqa.ChatModel(chat)
    with torch.no_grad():
        logits = [
            model.model(**model._inputs([picture(i), "is there a cat ?"], None)).logits[0, -1]
            for i in (0, 1)
        ]
    assert not torch.equal(*logits)


def test_first_words():
    said = {"Yes.": "yes", " yes, it is": "yes", "**No**": "no", "": "", "\n": "", "Yes!": "yes"}
    assert {reply: vqa.first_word(reply) for reply in said} == said


def test_a_judge_on_this_machine_is_known_by_its_weights(chat):
    config = JudgeConfig(kind="transformers", model="tiny-qwen2.5", key_variable="", max_tokens=4)
    judge = LocalJudge(config, chat)
    request = JudgeRequest("1", (Picture(png(picture(0))), "is there a cat ?"))
    reply = judge.ask(request)
    assert reply == judge.ask(request) and not reply.refused
    assert len(judge.determinants("t2i_compbench", "1")["weights"]) == 64
    assert judge.config.concurrency == 1
    with pytest.raises(ValueError, match="greedily"):
        LocalJudge(JudgeConfig(kind="transformers", model="x1", temperature=1.0), chat)
