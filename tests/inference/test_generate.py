"""Drawing for benchmarks: pictures by key alone, resumable, in prompt order."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca.core.artifacts import sha256_bytes, sha256_file
from reca.core.images import decode
from reca.inference.generate import Origin, answers, edit, generate, inference, reconstruct
from reca.inference.imageset import ImageSet, ImageSetWriter
from reca.inference.items import Prompt, Question
from reca.models.contract import Sampling
from tests.toy_model import DrawingToy, png

ROOT = Path(__file__).parents[2]
ORIGIN = Origin(model="m" * 64, benchmark="toy", seed=7, code="c" * 64)
PROMPTS = [Prompt(f"p{i}", "word " * (1 + i * 5 % 7), "task") for i in range(6)]


def draw(path, model=None, prompts=PROMPTS, origin=ORIGIN, sampling=None, **options):
    model = model or DrawingToy()
    with ImageSetWriter(path) as writer:
        drawn = generate(model, prompts, writer, origin, sampling or Sampling(), **options)
    return ImageSet(path), drawn


def pixels(pictures):
    return {entry: sha256_bytes(pictures.image(*entry).tobytes()) for entry in pictures}


def test_pictures_do_not_depend_on_the_batch_or_the_company(tmp_path):
    sets = [
        draw(tmp_path / f"{size}.tar", batch_size=size, images_per_prompt=2)[0]
        for size in (1, 5, 64)
    ]
    assert sha256_file(sets[0].path) == sha256_file(sets[1].path) == sha256_file(sets[2].path)
    alone, _ = draw(tmp_path / "alone.tar", prompts=PROMPTS[3:4], images_per_prompt=2)
    assert pixels(alone).items() < pixels(sets[0]).items()


def test_order_of_prompts_and_batches_of_like_length(tmp_path):
    pictures, drawn = draw(tmp_path / "s.tar", images_per_prompt=2, batch_size=5)
    assert drawn == 12
    assert list(pictures) == [(f"p{i}", index) for i in range(6) for index in range(2)]


@pytest.mark.parametrize(
    "origin",
    [replace(ORIGIN, seed=8), replace(ORIGIN, benchmark="other")],
    ids=["seed", "benchmark"],
)
def test_every_part_of_the_key_changes_the_noise(tmp_path, origin):
    first, _ = draw(tmp_path / "a.tar", images_per_prompt=2)
    second, _ = draw(tmp_path / "b.tar", origin=origin, images_per_prompt=2)
    assert not set(pixels(first).values()) & set(pixels(second).values())
    assert len(set(pixels(first).values())) == len(first)


def test_guidance_levels_share_noise_and_lie_apart(tmp_path):
    model = DrawingToy()
    with ImageSetWriter(tmp_path / "s.tar") as writer:
        for level in (0.0, 1.5):
            generate(
                model, PROMPTS[:1], writer, ORIGIN, Sampling(guidance=level), prefix=str(level)
            )
    pictures = ImageSet(tmp_path / "s.tar")
    assert [entry.key for entry in pictures] == ["0.0/p0", "1.5/p0"]
    recipes = [pictures.recipe(*entry) for entry in pictures]
    assert [recipe["guidance"] for recipe in recipes] == [0.0, 1.5]
    assert recipes[0]["generator"] == recipes[1]["generator"] == ["toy", "p0", 0, 7]


def test_the_recipe_describes_how_an_image_was_generated(tmp_path):
    sampling = Sampling(guidance=2.0, steps=3, temperature=0.5, options={"rule": "linear"})
    pictures, _ = draw(tmp_path / "s.tar", sampling=sampling, prompts=PROMPTS[:1])
    assert pictures.recipe("p0") == {
        "prompt": PROMPTS[0].text,
        "prompt_id": "p0",
        "sample": 0,
        "benchmark": "toy",
        "seed": 7,
        "generator": ["toy", "p0", 0, 7],
        "model": "m" * 64,
        "guidance": 2.0,
        "steps": 3,
        "temperature": 0.5,
        "options": {"rule": "linear"},
    }


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    def kill(done, total):
        if done == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    out, work = tmp_path / "s.tar", tmp_path / "w"
    options = {"batch_size": 2, "work": work, "progress": kill}
    child = multiprocessing.get_context("fork").Process(target=draw, args=(out,), kwargs=options)
    child.start()
    child.join(200)
    assert child.exitcode == -signal.SIGKILL
    assert not out.exists()
    model = DrawingToy()
    _, drawn = draw(out, model, work=work, batch_size=2)
    assert drawn == model.drawn == 2
    draw(tmp_path / "uninterrupted.tar")
    assert sha256_file(out) == sha256_file(tmp_path / "uninterrupted.tar")


def test_another_batch_size_keeps_what_is_there(tmp_path):
    work, model = tmp_path / "w", DrawingToy()
    draw(tmp_path / "a.tar", prompts=PROMPTS[:4], work=work, batch_size=4)
    _, drawn = draw(tmp_path / "b.tar", model, work=work, batch_size=2)
    assert (drawn, model.drawn) == (2, 4)  # by length the new ones are in two of the three batches
    draw(tmp_path / "uninterrupted.tar")
    assert sha256_file(tmp_path / "b.tar") == sha256_file(tmp_path / "uninterrupted.tar")


@pytest.mark.parametrize("change", ["model", "seed", "code", "guidance", "text", "damage"])
def test_unfinished_work_of_anything_else_is_not_used(tmp_path, change):
    work, prompts, origin, sampling = tmp_path / "w", PROMPTS, ORIGIN, Sampling()
    draw(tmp_path / "a.tar", work=work)
    if change in ("model", "code"):
        origin = replace(ORIGIN, **{change: "x" * 64})
    elif change == "seed":
        origin = replace(ORIGIN, seed=9)
    elif change == "guidance":
        sampling = Sampling(guidance=1.0)
    elif change == "text":
        prompts = [replace(prompt, text=prompt.text + "!") for prompt in PROMPTS]
    else:
        for kept in work.rglob("*.png"):
            kept.write_bytes(kept.read_bytes().replace(b"IDAT", b"IDAX"))
    second = draw(tmp_path / "b.tar", prompts=prompts, origin=origin, sampling=sampling, work=work)
    assert second[1] == 6
    fresh = draw(tmp_path / "c.tar", prompts=prompts, origin=origin, sampling=sampling)
    assert sha256_file(second[0].path) == sha256_file(fresh[0].path)


def test_equal_prompt_ids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="written twice"):
        draw(tmp_path / "s.tar", prompts=[PROMPTS[0], PROMPTS[0]])


def test_an_invalid_prompt_id_stops_before_anything_is_generated(tmp_path):
    model = DrawingToy()
    with pytest.raises(ValueError, match="is not a valid key"):
        draw(tmp_path / "s.tar", model, prompts=[Prompt("../../x", "word", "task")])
    assert model.drawn == 0


def test_reconstructions_come_from_the_picture(tmp_path):
    scenes = [Prompt(f"scene-{i}", "again", "reconstruction") for i in range(3)]
    files = [png(i) for i in range(3)]
    other = [files[0], png(9), files[2]]
    found = []
    for number, given in enumerate(list(zip(scenes, one, strict=True)) for one in (files, other)):
        with ImageSetWriter(tmp_path / f"{number}.tar") as writer:
            options = {"prefix": "reconstruct", "batch_size": 1 + number}
            reconstruct(DrawingToy(), given, writer, ORIGIN, Sampling(), **options)
        found.append(ImageSet(tmp_path / f"{number}.tar"))
    first, second = map(pixels, found)
    assert [entry.key for entry in first] == [f"reconstruct/scene-{i}" for i in range(3)]
    assert [entry.key for entry in first if first[entry] != second[entry]] == [
        "reconstruct/scene-1"
    ]
    recipe = found[0].recipe("reconstruct/scene-0")
    assert recipe["image_sha256"] == sha256_bytes(decode(files[0], name="0").tobytes())


def test_answers_in_order_whatever_the_batch():
    images = {f"i{i}": decode(png(i), name=str(i)) for i in range(3)}
    questions = [Question(f"q{i}", f"i{i % 3}", f"what {i}", "", "kind") for i in range(7)]
    model = DrawingToy()
    found = answers(model, questions, images, batch_size=4)
    assert list(found) == [question.id for question in questions]
    assert found == answers(DrawingToy(), questions, images, batch_size=1)
    seen = model.encode([images["i1"]], "read")["understanding"].sum()
    assert found["q4"] == f"4 tahw {float(seen):.3f}"
    assert model.encoded < 7 + 1  # pictures that share a batch are encoded once


class Several(DrawingToy):
    """Says what it sees of every picture."""

    def answer_about(self, questions, pictures, max_new_tokens=32):
        self.batches.append(len(questions))
        rows = zip(*(features["target"].tolist() for features in pictures), strict=True)
        return [f"{question} {row}" for question, row in zip(questions, rows, strict=True)]


def test_answers_about_several_pictures_see_all_in_order_whatever_the_batch():
    images = {f"i{i}": decode(png(i), name=str(i)) for i in range(3)}
    more = [(), ("i1", "i2"), ("i2", "i1"), ("i1",), (), ("i2", "i1")]
    questions = [Question(f"q{i}", "i0", f"what {i}", "", "kind", {}, ids) for i, ids in enumerate(more)]  # fmt: skip
    model = Several()
    found = answers(model, questions, images, batch_size=2)
    assert list(found) == [question.id for question in questions]
    assert model.batches == [1, 2, 1] and model.answered == 2  # two pictures, three, one
    assert found == answers(Several(), questions, images, batch_size=1)
    codes = {name: model.encode([image], "read")["target"][0].tolist() for name, image in images.items()}  # fmt: skip
    assert found["q2"] == f"what 2 {(codes['i0'], codes['i2'], codes['i1'])}"
    with pytest.raises(ValueError, match="reads one image per question"):
        answers(DrawingToy(), questions, images)
    del images["i2"]
    with pytest.raises(ValueError, match="3 questions refer to missing images: q1"):
        answers(model, questions, images)


def test_a_question_about_no_picture():
    with pytest.raises(ValueError, match="1 questions refer to missing images: q"):
        answers(DrawingToy(), [Question("q", "i", "?", "", "kind")], {})


def test_inference_restores_the_mode():
    model = DrawingToy().train()
    with inference(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training
    assert torch.is_grad_enabled()


# ---- seed schedules of the authors' scripts, and edits ---------------------------------------------
def scheduled(path, schedule, shard=(0, 1), prompts=PROMPTS, **options):
    origin = replace(ORIGIN, schedule=schedule, shard=shard)
    pictures, _ = draw(path, prompts=prompts, origin=origin, images_per_prompt=3, **options)
    return pixels(pictures)


def test_sample_index_gives_all_prompts_the_same_noise(tmp_path):
    same = [replace(prompt, text="word") for prompt in PROMPTS]
    found = scheduled(tmp_path / "a.tar", "sample_index", prompts=same, batch_size=4)
    assert len({found[entry] for entry in found if entry.sample == 1}) == 1
    assert len(set(found.values())) == 3
    alone = scheduled(tmp_path / "b.tar", "sample_index", prompts=same[2:3])
    assert alone.items() < found.items()


def test_prompt_reset_draws_one_after_the_other_from_one_generator(tmp_path):
    found = scheduled(tmp_path / "a.tar", "prompt_reset")
    noise, model = torch.Generator().manual_seed(ORIGIN.seed), DrawingToy()
    with inference(model):
        condition = model.condition([PROMPTS[4].text])
        by_hand = [model.generate(condition, None, Sampling(), [noise])[0] for _ in range(3)]
    assert [sha256_bytes(image.tobytes()) for image in by_hand] == [
        found["p4", k] for k in range(3)
    ]
    assert (
        scheduled(tmp_path / "b.tar", "prompt_reset", prompts=PROMPTS[4:5]).items() < found.items()
    )


def test_only_the_schedule_of_processes_depends_on_their_number(tmp_path):
    for schedule in ("per_image", "sample_index", "prompt_reset", "process"):
        whole = scheduled(tmp_path / f"{schedule}.tar", schedule)
        second = scheduled(tmp_path / f"{schedule}-1.tar", schedule, (1, 2), PROMPTS[1::2])
        assert (second.items() < whole.items()) == (schedule != "process")


@pytest.mark.parametrize("schedule", ["prompt_reset", "process"])
def test_a_sequence_with_gaps_is_filled_from_the_saved_states(tmp_path, schedule):
    first = scheduled(tmp_path / "a.tar", schedule, work=tmp_path / "work")
    kept = sorted((tmp_path / "work").rglob("*.png"))
    for number in (0, 1, 7, 16):
        kept[number].unlink()
    model = DrawingToy()
    again = scheduled(tmp_path / "b.tar", schedule, work=tmp_path / "work", model=model)
    assert again == first and model.batches == [1, 1, 1, 1]


class Editor(DrawingToy):
    """Mixes each picture with noise of its own; the capability names the losses too, which nothing here calls."""

    sample_edit_noise = edit_loss = print

    def edit(self, images, instructions, sampling, generators):
        made = []
        for image, text, noise in zip(images, instructions, generators, strict=True):
            grey = int(torch.randint(256, (1,), generator=noise)) ^ len(text)
            made.append(image.point(lambda value, grey=grey: (value + grey) % 256))
        return made


def test_edits_know_their_source_and_resume(tmp_path):
    edits = [(prompt, png(i)) for i, prompt in enumerate(PROMPTS)]

    def drawn(path, edits, size):
        with ImageSetWriter(path) as writer:
            count = edit(
                Editor(), edits, writer, ORIGIN, Sampling(), batch_size=size, work=tmp_path / "w"
            )
        return ImageSet(path), count

    whole, _ = drawn(tmp_path / "whole.tar", edits, 2)
    shutil.rmtree(tmp_path / "w")
    _, first = drawn(tmp_path / "a.tar", edits[:4], 2)
    pictures, second = drawn(tmp_path / "b.tar", edits, 3)
    assert (first, second) == (4, 2) and pixels(pictures) == pixels(whole)
    assert pictures.recipe("p2")["source_sha256"] == sha256_bytes(png(2))
    with (
        pytest.raises(ValueError, match="cannot edit"),
        ImageSetWriter(tmp_path / "c.tar") as writer,
    ):
        edit(DrawingToy(), edits, writer, ORIGIN, Sampling())
