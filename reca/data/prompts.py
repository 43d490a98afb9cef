"""Reconstruction prompts: requests to describe an image, combined with its embeddings.

The official list is a separate source (bank `file`). The default, `paper_like`, was written for
this package: about as many prompts in the same mixture (bagel.md 5) - formal audits of
ten facets, lists of facets, fragments, everyday requests and questions, requests with an angle,
polite ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from reca.core.artifacts import read_json

# Each group of prompts is the product of its openings and its endings.
_AUDITS = (
    (
        "Carry out a thorough inspection of this picture and report",
        "Write a complete technical record of the image, stating",
        "Prepare an exhaustive inventory of the scene that documents",
        "Deliver a formal assessment of the photograph or artwork, specifying",
        "Compile a precise catalogue entry for this image that sets out",
    ),
    (
        (
            "technical quality, artistic style, chromatic palette, geometric forms, relative "
            "proportions, materials and surface textures, the exact number of elements, any "
            "legible inscriptions, the spatial arrangement, and the background environment."
        ),
        (
            "sharpness and illumination, manner of depiction, dominant and complementary colors, "
            "silhouettes and contours, comparative dimensions, tactile characteristics, repeated "
            "elements with their frequency, embedded typography, relative positions, and the "
            "surrounding setting."
        ),
        (
            "photographic or painterly medium, visual genre, saturation and contrast, structural "
            "outlines, scale relationships, material finish and granularity, quantities per "
            "category, readable lettering, compositional layout, and background context."
        ),
        (
            "resolution and visible artifacts, stylistic conventions, prevailing color harmonies, "
            "shapes of principal and secondary components, proportional relationships, textural "
            "variation, object quantities, textual content, directional relationships, and "
            "scenery."
        ),
    ),
)
_FACET_LISTS = (
    (
        "Examine:",
        "Document:",
        "Report on:",
        "Itemize:",
        "Inspect:",
        "Record:",
    ),
    (
        (
            "image quality, artistic style, color composition, geometric shapes, relative "
            "proportions, surface textures, object quantities, written inscriptions, spatial "
            "relationships, background elements"
        ),
        (
            "every depicted object together with its quantity, coloration, material, approximate "
            "dimensions, visible lettering, neighboring objects, orientation and background "
            "surroundings"
        ),
        (
            "principal subjects, secondary objects, silhouettes, dominant colors, illumination and "
            "contrast, fabrics and finishes, number of repetitions, printed labels, compositional "
            "arrangement, surroundings"
        ),
        (
            "rendering technique, clarity of detail, tonal gradations, geometry of individual "
            "components, comparative scale, tactile qualities, quantities, signage, spatial "
            "organization, environmental setting"
        ),
        (
            "foreground, middle distance and background, specifying the shape, dimensions, "
            "coloration, texture, quantity and exact placement of their contents"
        ),
    ),
)
_TELEGRAMS = (
    (
        (
            "Clarity, style, coloration, geometry, proportions, textures, quantities, lettering, "
            "composition, background"
        ),
        (
            "Sharpness, genre, saturation, contours, dimensions, materials, repetitions, captions, "
            "arrangement, setting"
        ),
        (
            "Quality, technique, palette, silhouettes, scale, surfaces, numbers, inscriptions, "
            "positions, backdrop"
        ),
        (
            "Illumination, medium, tonality, shapes, measurements, fabrics, counts, symbols, "
            "relationships, surroundings"
        ),
    ),
    (
        "- note all",
        "- cover each",
        "- omit none",
        "- state everything",
        "- be complete",
    ),
)
_FRAGMENTS = (
    ("Describe", "Explain", "Put into words", "Lay out"),
    (
        "the entire image in detail",
        "all that the picture contains",
        "each visible part of this scene",
        "what the camera saw here",
        "this picture from edge to edge",
    ),
)
_QUESTIONS = (
    (
        "What can you see in",
        "What is going on in",
        "What do you notice in",
        "How would you describe",
        "What appears in",
        "What stands out in",
    ),
    ("this image?", "the picture?", "the scene?", "this photo?"),
)
_REQUESTS = (
    (
        "Tell me about",
        "Talk me through",
        "Walk me through",
        "Help me picture",
        "Give me a rundown of",
        "Write a few lines on",
    ),
    ("the image.", "this picture.", "the whole scene.", "this view."),
)
_INVENTORIES = (
    ("Mention", "Name", "Point out", "Write down", "Go over", "Spell out"),
    (
        "everything in the frame.",
        "each thing you notice.",
        "the visible details.",
        "whatever the picture shows.",
    ),
)
_ANGLES = (
    (
        "Describe this image",
        "Portray the scene",
        "Explain what the picture shows",
        "Recount everything visible here",
        "Give a full account of the picture",
        "Write out the contents of the frame",
        "Render the scene in words",
        "Depict in sentences what you see",
    ),
    (
        "for a listener who has never seen it and must imagine every component of it.",
        "so precisely that a painter could reproduce it without ever consulting the original.",
        "moving systematically from left to right, then from the foreground into the distance.",
        "as though it were opening a story, yet without omitting a single visible element.",
        "beginning with the main subject and ending with the smallest detail of the background.",
        "like a museum guide who wants visitors to notice every color, shape and surface.",
        "so unambiguously that different illustrators would sketch the same picture from your words.",
        "as an attentive witness who must remember what stood where, and in what quantity.",
        "in the order in which the eye travels across it, naming colors and shapes on the way.",
        "for a visually impaired friend who asks about colors, positions, sizes and materials.",
        "as instructions for a stage designer who has to return every object to its place.",
    ),
)
_COURTESIES = (
    (
        ("Could you please", "?"),
        ("Would you kindly", "?"),
        ("Can you", "?"),
        ("Might you be able to", "?"),
        ("I would like you to", "."),
        ("Please", "."),
        ("If possible, please", "."),
        ("I am hoping that you can", "."),
        ("It would help me if you would", "."),
        ("When you are ready, please", "."),
    ),
    (
        "describe everything that this picture contains",
        "go through the image and name what you find",
        "tell me what is shown here and where it is",
        "list the objects, colors and shapes that you notice",
        "explain the scene in as much detail as you can",
        "give me a complete description of what you see",
    ),
)
_PLAIN_FACETS = (
    (
        "Tell me",
        "Explain",
        "Let me know",
        "Write down",
        "Please state",
        "Describe in plain words",
        "I want to know",
        "Work out and say",
        "Note for me",
        "Look closely and tell me",
    ),
    (
        (
            "how sharp and well lit the image appears, which style, colors and geometric shapes "
            "characterize it, how large its elements are, and where each one belongs."
        ),
        (
            "which objects are present, what materials they seem to be made of, how their surfaces "
            "would feel, which colors dominate, and whether anything is written anywhere."
        ),
        (
            "what occupies the foreground and the background, what is comparatively large or "
            "small, which elements are repeated and how often, and what surrounds everything."
        ),
        (
            "which things are depicted, how they are positioned relative to one another, what "
            "shapes and colors distinguish them, and what the background looks like."
        ),
        (
            "how the picture was probably made, where the light falls, which colors return "
            "throughout, how many separate objects can be counted, and how their sizes compare."
        ),
    ),
)

SINGLE = ("Describe the image in detail.",)
"""One prompt for every image: the ablation of prompt variety."""

LAPTOP = (
    "describe the picture",
    "describe the image",
    "describe the scene",
    "describe all objects",
    "what is in the picture",
    "what is in the image",
    "what is in the scene",
    "what do you see",
    "what do you see in the picture",
    "what do you see in the image",
    "tell me what is in the picture",
    "tell me what you see",
    "tell me about the picture",
    "tell me about the scene",
    "list all objects in the picture",
    "list all objects in the image",
    "list all you see",
    "name all objects",
    "name all objects in the scene",
    "name all you see",
)
"""Prompts for the laptop world; their few lower-case words must be in its tokenizer's
vocabulary."""

BANKS = ("paper_like", "single", "laptop", "file")


def bank(name: str = "paper_like", path: str | Path | None = None) -> tuple[str, ...]:
    """The prompts of a bank, in a fixed order; a training step samples uniformly from them.

    Args:
        name: one of `BANKS`.
        path: bank `file` only: a JSON list of strings, or a text file with one prompt per line.
            Duplicates are kept (the official list has some), so they are sampled more often.

    Raises:
        ValueError: unknown bank, an unexpected path, or a file without prompts.
    """
    if name == "file":
        if path is None:
            raise ValueError("prompt bank 'file' requires the path of a list of prompts")
        return _from_file(Path(path))
    if path is not None:
        raise ValueError(f"prompt bank {name!r} takes no path ({path}); use the bank 'file'")
    if name == "paper_like":
        return tuple(_paper_like())
    if name in ("single", "laptop"):
        return SINGLE if name == "single" else LAPTOP
    raise ValueError(f"unknown prompt bank {name!r}; allowed: {', '.join(BANKS)}")


def _paper_like() -> Iterator[str]:
    yield from _joined(*_AUDITS)
    yield from _joined(*_FACET_LISTS)
    yield from _joined(*_TELEGRAMS)
    yield from _joined(*_FRAGMENTS)
    yield from _joined(*_QUESTIONS)
    yield from _joined(*_REQUESTS)
    yield from _joined(*_INVENTORIES)
    yield from _joined(*_ANGLES)
    for opening, mark in _COURTESIES[0]:
        yield from _joined([opening], [ending + mark for ending in _COURTESIES[1]])
    yield from _joined(*_PLAIN_FACETS)


def _joined(openings: Iterable[str], endings: Iterable[str]) -> Iterator[str]:
    endings = tuple(endings)
    return (f"{opening} {ending}" for opening in openings for ending in endings)


def _from_file(path: Path) -> tuple[str, ...]:
    if path.suffix == ".json":
        prompts = read_json(path)
    else:
        try:
            prompts = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as fault:
            raise ValueError(f"{path}: cannot read the prompts ({fault})") from fault
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{path}: expected a list of strings, one reconstruction prompt each")
    kept = tuple(prompt.strip() for prompt in prompts if prompt.strip())
    if not kept:
        raise ValueError(f"{path}: no prompts in this file")
    return kept
