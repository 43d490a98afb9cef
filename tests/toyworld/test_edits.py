"""Edits of the world: the two sides differ where they say, words mean one object, every reader can hold them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reca.config.schema import ToyWorld
from reca.core.rng import numpy_generator
from reca.data.formats import open_dataset
from reca.toyworld.edits import EDITS, WORDS, draw_edit
from reca.toyworld.render import render
from reca.toyworld.scenes import PLACES, draw_pixels
from reca.toyworld.text import vocabulary

MANY = 120


def made(kind: str) -> list:
    return [draw_edit(kind, numpy_generator("test", kind, index)) for index in range(MANY)]


@pytest.mark.parametrize("kind", EDITS)
def test_source_and_target_differ_in_the_named_places_only(kind):
    for edit in made(kind):
        before = {thing.place: thing for thing in edit.source.things}
        after = {thing.place: thing for thing in edit.target.things}
        changed = {p for p in range(len(PLACES)) if before.get(p) != after.get(p)}
        assert changed == set(edit.places)
        assert list(after) == sorted(after)  # in reading order, as every scene
        rest = draw_pixels(edit.source) != draw_pixels(edit.target)
        for place in set(range(len(PLACES))) - changed:
            row, column = divmod(place, 2)
            assert not rest[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].any()


def test_each_kind_changes_what_its_name_says():
    for edit in made("recolour"):
        old, new = (
            next(t for t in s.things if t.place in edit.places) for s in (edit.source, edit.target)
        )
        assert (old.shape, old.shift_x, old.shift_y) == (new.shape, new.shift_x, new.shift_y)
        assert old.colour != new.colour and edit.instruction.endswith(f" {new.colour}")
    for edit in made("replace"):
        old, new = (
            next(t for t in s.things if t.place in edit.places) for s in (edit.source, edit.target)
        )
        assert (old.colour, old.shift_x) == (new.colour, new.shift_x) and old.shape != new.shape
    sizes = {
        kind: {len(e.target.things) - len(e.source.things) for e in made(kind)} for kind in EDITS
    }
    assert sizes == {"recolour": {0}, "replace": {0}, "move": {0}, "remove": {-1}, "add": {1}}
    assert all(edit.target.things for edit in made("remove"))


@pytest.mark.parametrize("kind", [kind for kind in EDITS if kind != "add"])
def test_the_words_mean_one_object(kind):
    """The colour, shape and place that an instruction names before its new value fit the edited object alone."""
    for edit in made(kind):
        told = edit.instruction.split(" with ")[0].split(" to the ")[0].split(" the ", 1)[1]
        words, _, place = told.partition(" at the ")
        if kind == "recolour" and not place:
            words = words.rsplit(" ", 1)[0]
        fits = [
            thing
            for thing in edit.source.things
            if words in (thing.shape, f"{thing.colour} {thing.shape}")
            and (not place or place.startswith(PLACES[thing.place]))
        ]
        assert [thing.place for thing in fits] == [edit.places[0]], edit.instruction


def test_instructions_use_the_world_s_words_and_six_more():
    known = {*vocabulary(), *WORDS}
    assert not set(WORDS) & set(vocabulary())
    for kind in EDITS:
        for edit in made(kind):
            assert set(edit.instruction.split()) <= known, edit.instruction


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'paint' is not known; choose one of: recolour"):
        draw_edit("paint", numpy_generator("x"))


def test_a_rendered_set_has_two_rows_an_edit_and_equal_bytes(tmp_path):
    world = ToyWorld(kind="edits", images=10, seed=3)
    assert render(world, tmp_path / "a") == 20
    render(world, tmp_path / "b")
    assert (tmp_path / "a/train.parquet").read_bytes() == (
        tmp_path / "b/train.parquet"
    ).read_bytes()
    data = open_dataset("world", tmp_path / "a")
    rows = [data[index] for index in range(len(data))]
    for source, target, kind in zip(rows[::2], rows[1::2], [*EDITS, *EDITS], strict=True):
        assert target.extra["source"] == source.id and source.extra["source"] is None
        assert source.caption is None and target.caption
        assert json.loads(source.extra["scene"]) != json.loads(target.extra["scene"]), kind
        assert source.image != target.image
    assert np.unique([row.id for row in rows]).size == 20
