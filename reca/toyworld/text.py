"""Texts about laptop scenes: dense descriptions and questions for understanding, sparse captions for generation.

The difference is the paper's premise: captions leave most of the image undescribed, its embeddings do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import numpy as np

from reca.toyworld.scenes import COLOUR_NAMES, PLACES, SHAPE_NAMES, Scene, Thing, draw_scene

NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
DESCRIBE = "describe the picture ."
LOOKED_UP = ("colour", "place", "relation")  # kinds of question that models learn last
Turn = tuple[str, str]


# ---- phrases ---------------------------------------------------------------------------------------------------------
def phrase(thing: Thing, colour: bool = True, place: bool = False) -> str:
    """`a circle`, `a red circle`, `a red circle at the top left`."""
    words = f"a {thing.colour} {thing.shape}" if colour else f"a {thing.shape}"
    return f"{words} at the {PLACES[thing.place]}" if place else words


def counted(number: int, shape: str, colour: str | None = None) -> str:
    """`three circles`, `two red circles`, `one circle`."""
    noun = shape if number == 1 else f"{shape}s"
    return f"{NUMBERS[number]} {colour} {noun}" if colour else f"{NUMBERS[number]} {noun}"


def relation(first: Thing, second: Thing) -> str | None:
    """The position of the first relative to the second if they share a row or column; None for diagonal neighbours."""
    (row_a, column_a), (row_b, column_b) = divmod(first.place, 2), divmod(second.place, 2)
    if row_a == row_b:
        return RELATIONS[0] if column_a < column_b else RELATIONS[1]
    if column_a == column_b:
        return RELATIONS[2] if row_a < row_b else RELATIONS[3]
    return None


def dense_caption(scene: Scene, place: bool = True) -> str:
    """Every object with its colour and, if requested, its place, in reading order."""
    return " and ".join(phrase(thing, place=place) for thing in scene.things)


# ---- captions for generation-----------------------------------------------------------------------------------------
def sparse_caption(scene: Scene, rates: Mapping[str, float], generator: np.random.Generator) -> str:
    """A sparse caption; `rates` are the probabilities of mentioning each kind of fact.

    Keys: `noise` (the caption of another scene), `relation`, `count`, `two` (two objects), `colour` (per object), and
    `single_colour` (the colour where the scene has one object). The remaining probability names a single object.
    `everything`, which is optional, is the probability of a complete caption: every object, its colour and its place.
    """
    if rates.get("everything") and generator.random() < rates["everything"]:
        return dense_caption(scene)
    if generator.random() < rates["noise"]:
        scene = draw_scene(generator)
    things = scene.things
    if len(things) == 1:
        return phrase(things[0], colour=bool(generator.random() < rates["single_colour"]))
    kind = generator.random()
    if kind < rates["relation"]:
        return _relation_caption(things, rates["colour"], generator)
    if kind < rates["relation"] + rates["count"]:
        return _count_caption(things, generator)
    chosen = 2 if kind < rates["relation"] + rates["count"] + rates["two"] else 1
    picked = [things[i] for i in generator.permutation(len(things))[:chosen]]
    return " and ".join(
        phrase(t, colour=bool(generator.random() < rates["colour"])) for t in picked
    )


def _relation_caption(
    things: Sequence[Thing], colour: float, generator: np.random.Generator
) -> str:
    pairs = [(a, b) for a in things for b in things if a is not b and relation(a, b)]
    if not pairs:
        return phrase(things[0], colour=bool(generator.random() < colour))
    first, second = pairs[int(generator.integers(len(pairs)))]
    words = [phrase(t, colour=bool(generator.random() < colour)) for t in (first, second)]
    return f"{words[0]} {relation(first, second)} {words[1]}"


def _count_caption(things: Sequence[Thing], generator: np.random.Generator) -> str:
    shape = things[int(generator.integers(len(things)))].shape
    return counted(sum(t.shape == shape for t in things), shape)


# ---- questions -------------------------------------------------------------------------------------------------------
def _unique(things: Sequence[Thing], key: Callable[[Thing], object]) -> list[Thing]:
    values = [key(thing) for thing in things]
    return [thing for thing in things if values.count(key(thing)) == 1]


def _pick(items: Sequence[Thing], generator: np.random.Generator) -> Thing:
    return items[int(generator.integers(len(items)))]


def colour_question(scene: Scene, generator: np.random.Generator) -> Turn | None:
    """Asks for the colour of a shape that occurs once."""
    things = _unique(scene.things, lambda t: t.shape)
    thing = _pick(things, generator) if things else None
    return (f"what color is the {thing.shape} ?", thing.colour) if thing else None


def shape_question(scene: Scene, generator: np.random.Generator) -> Turn | None:
    """Asks for the shape of a colour that occurs once."""
    things = _unique(scene.things, lambda t: t.colour)
    thing = _pick(things, generator) if things else None
    return (f"what is {thing.colour} ?", f"the {thing.shape}") if thing else None


def count_question(scene: Scene, generator: np.random.Generator) -> Turn | None:
    """Asks how many objects have a shape, possibly none."""
    present = generator.random() < 0.8
    shape = _pick(scene.things, generator).shape if present else str(generator.choice(SHAPE_NAMES))
    return f"how many {shape}s ?", NUMBERS[sum(t.shape == shape for t in scene.things)]


def exist_question(scene: Scene, generator: np.random.Generator) -> Turn | None:
    """Asks whether an object of a colour and shape exists; about half of the answers are no, mostly by one word."""
    thing = _pick(scene.things, generator)
    colour, shape = thing.colour, thing.shape
    choice = generator.random()
    if choice < 0.25:
        colour = str(generator.choice(COLOUR_NAMES))
    elif choice < 0.5:
        shape = str(generator.choice(SHAPE_NAMES))
    found = any(t.colour == colour and t.shape == shape for t in scene.things)
    return f"is there a {colour} {shape} ?", "yes" if found else "no"


def place_question(scene: Scene, generator: np.random.Generator) -> Turn | None:
    """Asks for the place of an object that occurs once."""
    things = _unique(scene.things, lambda t: (t.colour, t.shape))
    thing = _pick(things, generator) if things else None
    return (
        (f"where is the {thing.colour} {thing.shape} ?", f"at the {PLACES[thing.place]}")
        if thing
        else None
    )


def relation_question(scene: Scene, generator: np.random.Generator) -> Turn | None:
    """Asks for the relation of two shapes that both occur once and share a row or a column."""
    things = _unique(scene.things, lambda t: t.shape)
    pairs = [(a, b) for a in things for b in things if a is not b and relation(a, b)]
    if not pairs:
        return None
    first, second = pairs[int(generator.integers(len(pairs)))]
    return f"how is the {first.shape} to the {second.shape} ?", str(relation(first, second))


QUESTIONS = {
    "colour": colour_question,
    "shape": shape_question,
    "count": count_question,
    "exist": exist_question,
    "place": place_question,
    "relation": relation_question,
}


def place_by_shape_question(scene: Scene, generator: np.random.Generator) -> Turn | None:
    """Asks for the place of a shape that occurs once: one lookup, where `place` needs colour and shape."""
    things = _unique(scene.things, attrgetter("shape"))
    thing = _pick(things, generator) if things else None
    return (f"where is the {thing.shape} ?", f"at the {PLACES[thing.place]}") if thing else None


def describe_request(scene: Scene, _: np.random.Generator) -> Turn:
    """Asks for the dense description."""
    return DESCRIBE, dense_caption(scene)


CONVERSATION = "conversation"
# What `world.asks` may name besides `CONVERSATION`.
ASKED = {
    **QUESTIONS,
    "place_by_shape": place_by_shape_question,
    "describe": describe_request,
}


def conversation_of(
    scene: Scene, kinds: Sequence[str], generator: np.random.Generator
) -> list[Turn]:
    """An image-to-text sample of one of `kinds`, equally likely; a question of any kind if the scene allows none.

    Each is one question, except `conversation`, which is an `image_conversation` of up to three turns.
    """
    known = (*ASKED, CONVERSATION)
    if unknown := sorted(set(kinds) - set(known)):
        raise ValueError(
            f"world.asks = {', '.join(unknown)}: unknown kind of question; choose from {', '.join(known)}"
        )
    for kind in (*(kinds[i] for i in generator.permutation(len(kinds))), *QUESTIONS):
        if kind == CONVERSATION:
            return image_conversation(scene, generator)
        if (turn := ASKED[kind](scene, generator)) is not None:
            return [turn]
    raise AssertionError("every scene has objects to count")


def questions(scene: Scene, generator: np.random.Generator) -> dict[str, Turn]:
    """One question of every kind that the scene allows, by kind."""
    questions = {kind: ask(scene, generator) for kind, ask in QUESTIONS.items()}
    return {kind: turn for kind, turn in questions.items() if turn is not None}


def bound_questions(scene: Scene, generator: np.random.Generator) -> list[Turn]:
    """Questions that lists of a scene's shapes, colours and places do not answer, only which belong together.

    For training; the held-out questions are of the kinds in `QUESTIONS`.
    """
    things = scene.things
    thing, other = _pick(things, generator), _pick(things, generator)
    place = PLACES[thing.place]
    exists = any((t.colour, t.shape) == (thing.colour, other.shape) for t in things)
    turns = [
        (f"what is at the {place} ?", phrase(thing)),
        (f"what color is the {thing.shape} at the {place} ?", thing.colour),
        (f"is there a {thing.colour} {other.shape} ?", "yes" if exists else "no"),
    ]
    for key in ("shape", "colour"):
        for one in _unique(things, attrgetter(key))[:1]:
            named = f"the {one.shape}" if key == "shape" else one.colour
            turns.append((f"where is {named} ?", f"at the {PLACES[one.place]}"))
    known = _unique(things, lambda t: (t.colour, t.shape))
    pairs = [(a, b) for a in things for b in known if a is not b and relation(a, b)]
    if pairs:
        first, second = pairs[int(generator.integers(len(pairs)))]
        asked = f"what is {relation(first, second)} the {second.colour} {second.shape} ?"
        turns.append((asked, phrase(first)))
    return turns


def image_conversation(
    scene: Scene, generator: np.random.Generator, describes: float = 1.0, binding: float = 0.0
) -> list[Turn]:
    """An image-to-text sample: the dense description, alone or after two questions.

    The description comes last because it would give the answers away. A share `describes` of the samples has it; the
    others are up to three questions, whose short answers are otherwise a small part of the tokens of a loss. In a share
    `binding` of the samples the three are of `bound_questions`, too, and the others are the description alone, so that
    conversations are about equally long.
    """
    if binding:
        if generator.random() < binding:
            return _binding_turns(scene, generator)
        return [(DESCRIBE, dense_caption(scene))]
    if describes < 1 and generator.random() >= describes:
        return _some(list(questions(scene, generator).values()), 3, generator)
    describe = (DESCRIBE, dense_caption(scene))
    if generator.random() < 0.5:
        return [describe]
    return [*_some(list(questions(scene, generator).values()), 2, generator), describe]


def _binding_turns(scene: Scene, generator: np.random.Generator) -> list[Turn]:
    """Up to three questions, those that look up a fact of a named object three times as often as others."""
    asked = questions(scene, generator)
    kinds = [*asked, *["bound"] * len(bound := bound_questions(scene, generator))]
    turns = [*asked.values(), *bound]
    odds = np.array([3.0 if kind in LOOKED_UP else 1.0 for kind in kinds])
    size = min(3, len(turns))
    return [turns[i] for i in generator.choice(len(turns), size, False, odds / odds.sum())]


def _some(turns: Sequence[Turn], most: int, generator: np.random.Generator) -> list[Turn]:
    return [turns[i] for i in generator.permutation(len(turns))[:most]]


def told_conversation(generator: np.random.Generator) -> list[Turn]:
    """Text-only turns about a scene told with every place, before or after its object, in any order.

    A place that comes first lets the noun's state hold everything about its object, as the token of a picture does.
    """
    scene = draw_scene(generator)
    parts = [
        f"at the {PLACES[t.place]} {phrase(t)}"
        if generator.random() < 0.5
        else phrase(t, place=True)
        for t in (scene.things[i] for i in generator.permutation(len(scene.things)))
    ]
    turns = _binding_turns(scene, generator)
    if generator.random() < 0.1:
        turns.append((DESCRIBE, dense_caption(scene)))
    (question, answer), *others = turns
    return [(f"{' and '.join(parts)} . {question}", answer), *others]


def text_conversation(generator: np.random.Generator, binding: float = 0.0) -> list[Turn]:
    """Text-only turns about a scene that the first question describes in the style of prompts; they teach the words.

    A share `binding` of them is of `told_conversation`.
    """
    if binding and generator.random() < binding:
        return told_conversation(generator)
    scene = draw_scene(generator, count=int(generator.integers(1, 4)))
    things = [scene.things[i] for i in generator.permutation(len(scene.things))]
    context, known = _context(scene, things, generator)
    answered = [turn for kind, turn in questions(scene, generator).items() if kind in known]
    turns = _some(answered, 2, generator)
    describes = generator.random() < 0.5
    if "place" in known and describes:
        turns.append((DESCRIBE, dense_caption(scene)))
    elif "all" in known and describes:
        turns.append((DESCRIBE, dense_caption(scene, place=False)))
    (question, answer), *others = turns
    return [(f"{context} . {question}", answer), *others]


def _context(
    scene: Scene, things: Sequence[Thing], generator: np.random.Generator
) -> tuple[str, set[str]]:
    """A context in one of four styles, and the kinds of question that it answers."""
    pair = things[:2]
    style = generator.random()
    facts = {"colour", "shape", "count", "exist"}
    if style < 0.3 and len(things) == 2 and relation(*pair):
        return f"{phrase(pair[0])} {relation(*pair)} {phrase(pair[1])}", facts | {"relation"}
    if style < 0.5 and len({(t.shape, t.colour) for t in things}) == 1:
        return counted(len(things), things[0].shape, things[0].colour), {
            "colour",
            "shape",
            "count",
            "exist",
        }
    if style < 0.75:
        return " and ".join(phrase(t, place=True) for t in things), facts | {"place", "relation"}
    return dense_caption(scene, place=False), facts | {"all"}


def vocabulary() -> list[str]:
    """Every word of the world, for a closed tokenizer (plurals are the noun and `##s`)."""
    places = {word for place in PLACES for word in place.split()}
    relations = {word for phrase_ in RELATIONS for word in phrase_.split()}
    grammar = set(
        [
            "a",
            "and",
            "at",
            "the",
            ".",
            "?",
            ",",
            "what",
            "color",
            "is",
            "how",
            "many",
            "there",
            "where",
            "to",
            "yes",
            "no",
            "describe",
            "picture",
        ]
    )
    return sorted({*SHAPE_NAMES, *COLOUR_NAMES, *NUMBERS, *places, *relations, *grammar, "##s"})
