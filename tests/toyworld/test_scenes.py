"""The laptop world: what is said of a scene is true of it, and equal sections give equal bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reca.config.schema import ToyWorld
from reca.core.artifacts import sha256_file
from reca.data.formats import open_dataset
from reca.toyworld.render import FILE, render
from reca.toyworld.scenes import PLACES, Scene, Thing, draw_pixels, draw_scene
from reca.toyworld.text import (
    DESCRIBE,
    NUMBERS,
    bound_questions,
    conversation_of,
    dense_caption,
    image_conversation,
    questions,
    relation,
    sparse_caption,
    text_conversation,
    told_conversation,
    vocabulary,
)

RATES = {
    "noise": 0.0,
    "relation": 0.3,
    "count": 0.3,
    "two": 0.2,
    "colour": 0.5,
    "single_colour": 0.5,
}


def scenes(count: int = 300) -> list[Scene]:
    generator = np.random.default_rng(1)
    return [draw_scene(generator) for _ in range(count)]


def test_scenes_are_drawn_inside_their_places() -> None:
    for scene in scenes():
        assert len({thing.place for thing in scene.things}) == len(scene.things) <= 4
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
        pixels = draw_pixels(scene)
        for place in range(4):
            top, left = 8 * (place // 2), 8 * (place % 2)
            lit = (pixels[top : top + 8, left : left + 8] > 30).any()
            assert lit == any(thing.place == place for thing in scene.things)


def test_answers_are_true() -> None:
    generator = np.random.default_rng(2)
    for scene in scenes():
        things = scene.things
        for kind, (question, answer) in questions(scene, generator).items():
            words = question.split()
            if kind == "colour":
                assert [t.colour for t in things if t.shape == words[-2]] == [answer]
            elif kind == "shape":
                assert [f"the {t.shape}" for t in things if t.colour == words[-2]] == [answer]
            elif kind == "count":
                assert NUMBERS[sum(f"{t.shape}s" == words[2] for t in things)] == answer
            elif kind == "exist":
                found = any((t.colour, t.shape) == (words[3], words[4]) for t in things)
                assert answer == ("yes" if found else "no")
            elif kind == "place":
                (thing,) = (t for t in things if (t.colour, t.shape) == (words[3], words[4]))
                assert answer == f"at the {PLACES[thing.place]}"
            else:
                first, second = (next(t for t in things if t.shape == words[i]) for i in (3, 6))
                assert relation(first, second) == answer


def test_sparse_captions_name_only_what_is_there() -> None:
    generator = np.random.default_rng(3)
    told = [(scene, sparse_caption(scene, RATES, generator)) for scene in scenes()]
    for scene, caption in told:
        shapes = {thing.shape for thing in scene.things}
        named = {word.removesuffix("s") for word in caption.split()} & {*vocabulary()}
        assert named & shapes
        assert len(caption) < len(dense_caption(scene))
    assert any(" left of " in caption for _, caption in told)
    assert any(caption.split()[0] in NUMBERS for _, caption in told)


def test_a_share_of_captions_tells_everything() -> None:
    generator = np.random.default_rng(3)
    rates = {**RATES, "everything": 0.4}
    several = [scene for scene in scenes() if len(scene.things) > 1]
    told = [sparse_caption(scene, rates, generator) == dense_caption(scene) for scene in several]
    assert sum(told) / len(told) == pytest.approx(0.4, abs=0.1)


def test_worlds_without_that_share_stay_the_same() -> None:
    """The captions of data that exists are drawn from the same numbers."""
    captions = []
    for rates in (RATES, {**RATES, "everything": 0.0}):
        generator = np.random.default_rng(3)
        captions.append([sparse_caption(scene, rates, generator) for scene in scenes()])
    assert captions[0] == captions[1]


def test_a_share_of_conversations_has_the_description() -> None:
    described = 0
    for index in range(400):
        generator = np.random.default_rng(index)
        turns = image_conversation(draw_scene(generator), generator, describes=0.3)
        described += turns[-1][0] == DESCRIBE
        assert all(question != DESCRIBE for question, _ in turns[:-1])
        assert 1 <= len(turns) <= 3
    assert 0.2 < described / 400 < 0.4
    for describes in (1.0, 0.0):
        generator = np.random.default_rng(1)
        turns = image_conversation(draw_scene(generator), generator, describes)
        assert (turns[-1][0] == DESCRIBE) == bool(describes)


def test_relations_need_a_shared_row_or_column() -> None:
    corners = [Thing(place, "flag", "red") for place in range(4)]
    assert relation(corners[0], corners[1]) == "left of"
    assert relation(corners[2], corners[0]) == "below"
    assert relation(corners[0], corners[3]) is None


def test_bound_questions_have_the_answers_of_the_scene() -> None:
    red, blue = Thing(0, "circle", "red"), Thing(1, "flag", "blue")
    found = {}
    for index in range(60):
        found |= dict(bound_questions(Scene((red, blue)), np.random.default_rng(index)))
    assert found == {
        "what is at the top left ?": "a red circle",
        "what is at the top right ?": "a blue flag",
        "what color is the circle at the top left ?": "red",
        "what color is the flag at the top right ?": "blue",
        "is there a red circle ?": "yes",
        "is there a blue flag ?": "yes",
        "is there a red flag ?": "no",  # both words are true of the scene
        "is there a blue circle ?": "no",
        "where is the circle ?": "at the top left",
        "where is red ?": "at the top left",
        "what is left of the blue flag ?": "a red circle",
        "what is right of the red circle ?": "a blue flag",
    }


def test_a_told_scene_names_every_place_before_or_after_its_object() -> None:
    orders = set()
    for index in range(200):
        (told, _), *_ = told_conversation(np.random.default_rng(index))
        for part in told.partition(" . ")[0].split(" and "):
            words = part.split()
            orders.add(words[0])
            assert len(words) == 7
            assert " ".join(words[2:4] if words[0] == "at" else words[-2:]) in PLACES
    assert orders == {"a", "at"}


def test_a_world_that_asks_for_kinds_has_one_question_of_them() -> None:
    generator = np.random.default_rng(3)
    starts = {"colour": "what color is the", "place_by_shape": "where is the"}
    seen = set()
    for _ in range(100):
        scene = draw_scene(generator, count=2)
        ((question, answer),) = conversation_of(scene, list(starts), generator)
        shapes = [thing.shape for thing in scene.things]
        if len(set(shapes)) == 2:
            (kind,) = (kind for kind, start in starts.items() if question.startswith(start))
            (thing,) = (thing for thing in scene.things if f"the {thing.shape} ?" in question)
            right = {"colour": thing.colour, "place_by_shape": f"at the {PLACES[thing.place]}"}
            assert answer == right[kind]
            seen.add(kind)
        else:  # no shape occurs once: any other kind
            assert not question.startswith(starts["colour"])
    assert seen == set(starts)
    with pytest.raises(ValueError, match=r"world\.asks = color: unknown kind .* colour, shape"):
        conversation_of(scene, ["color"], generator)


def test_a_world_that_asks_for_kinds_may_keep_its_descriptions() -> None:
    generator = np.random.default_rng(4)
    turns = []
    for _ in range(300):
        scene = draw_scene(generator)
        talk = conversation_of(scene, ["count", "describe", "conversation"], generator)
        described = talk[-1] == (DESCRIBE, dense_caption(scene))
        assert described or (len(talk) == 1 and talk[0][0].startswith("how many"))
        turns.append(len(talk) if described else 0)
    assert set(turns) == {0, 1, 3}
    assert 75 < turns.count(0) < 125 and 125 < turns.count(1) < 175  # 1/3; 1/3 + 1/6


def test_worlds_without_bound_questions_stay_the_same() -> None:
    talks = []
    for share in ((), (0.0,)):
        generator = np.random.default_rng(5)
        talk = text_conversation(generator, *share)
        talks.append([*talk, *image_conversation(draw_scene(generator), generator, 0.3, *share)])
    assert talks[0] == talks[1]


def test_conversations_use_the_closed_vocabulary() -> None:
    generator = np.random.default_rng(4)
    known = {*vocabulary(), *(f"{word}s" for word in vocabulary())}
    for index in range(300):
        for question, answer in text_conversation(generator, binding=float(index % 2)):
            assert {*question.split(), *answer.split()} <= known


@pytest.mark.parametrize("kind", ["images", "text"])
def test_equal_sections_give_equal_bytes(tmp_path: Path, kind: str) -> None:
    caption = {**RATES, "noise": 0.1}
    world = ToyWorld(kind=kind, images=20, seed=5, single_object_share=0.3, caption=caption)
    hashes = {
        render(world, tmp_path / name) and sha256_file(tmp_path / name / FILE) for name in "ab"
    }
    assert len(hashes) == 1
    dataset = open_dataset("world", tmp_path / "a")
    assert len(dataset) == 20
    assert all(dataset[i].conversations for i in range(20))
    assert (dataset[0].image is None) == (kind == "text")
