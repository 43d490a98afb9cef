"""Single images with any model folder: draw, reconstruct, edit, ask. Results are pure functions of the seed.

`sampling` defaults to the settings of the family's authors; further keywords (`steps=20, guidance=3.0`) override fields
of it. `device` is a name that `reca.core.devices.device_of` accepts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.artifacts import MANIFEST, verify
from reca.core.devices import device_of, placed
from reca.core.finite import named
from reca.core.images import decode
from reca.core.rng import generator
from reca.data.prompts import bank
from reca.inference.generate import draw as draw_rows
from reca.inference.generate import inference
from reca.models.registry import load_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.contract import Sampling, UnifiedModel


def draw(
    model_dir: str | Path,
    prompt: str,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    device: str = "auto",
    **changes: Any,
) -> Image:
    """Generate an image for a prompt; ValueError names an unusable model folder or prompt."""
    _check_words("prompt", prompt, "say what to draw")
    model = open_model(model_dir, device)
    with inference(model):
        noise = [generator("draw", seed)]
        with named([prompt], model_dir):
            return draw_rows(model, [prompt], None, _sampling(model, sampling, changes), noise)[0]


def reconstruct(
    model_dir: str | Path,
    image: str | Path,
    *,
    prompt: str | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    device: str = "auto",
    **changes: Any,
) -> Image:
    """Reconstruct an image from the model's understanding embeddings; the default prompt is the bank's first."""
    text = bank()[0] if prompt is None else prompt
    _check_words("prompt", text, "leave it out for the bank's first")
    picture, model = read_picture(image), open_model(model_dir, device)
    with inference(model):
        features = model.encode([picture], "draw")
        noise = [generator("reconstruct", seed)]
        with named([text], model_dir):
            return draw_rows(model, [text], features, _sampling(model, sampling, changes), noise)[0]


def edit(
    model_dir: str | Path,
    image: str | Path,
    instruction: str,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    device: str = "auto",
    **changes: Any,
) -> Image:
    """Edit an image by an instruction; ValueError if the model's family cannot edit."""
    from reca.models.contract import editor

    _check_words("instruction", instruction, "say what to change")
    picture, model = read_picture(image), open_model(model_dir, device)
    with inference(model):
        noise = [generator("edit", seed)]
        with named([instruction], model_dir):
            return editor(model).edit(
                [picture], [instruction], _sampling(model, sampling, changes), noise
            )[0]


def ask(
    model_dir: str | Path,
    image: str | Path,
    question: str,
    *,
    max_new_tokens: int = 256,
    device: str = "auto",
) -> str:
    """Answer a question about an image; an answer truncated at `max_new_tokens` is logged."""
    _check_words("question", question, "say what to ask")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    picture, model = read_picture(image), open_model(model_dir, device)
    with inference(model), named([question], model_dir):
        return model.answer([question], model.encode([picture], "read"), max_new_tokens)[0]


def open_model(folder: str | Path, device: str = "auto") -> UnifiedModel:
    """Load the model of a folder, verifying file hashes if a stage wrote it; ValueError names a damaged file."""
    device_of(device)  # checked first, so that a wrong name does not cost minutes of reading
    if (Path(folder) / MANIFEST).is_file():
        verify(folder)
    return placed(load_model(folder), device)


def _sampling(model: UnifiedModel, given: Sampling | None, changes: dict[str, Any]) -> Sampling:
    return replace(given or model.default_sampling(), **changes)


def _check_words(what: str, text: str, remedy: str) -> None:
    """Raise ValueError for an empty text or one that is not UTF-8 on the command line (lone surrogates)."""
    if not text.strip():
        raise ValueError(f"the {what} is empty; {remedy}")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"the {what} {text!a} is not UTF-8 text; type it in UTF-8")


def read_picture(path: str | Path) -> Image:
    """Load an image from a file; ValueError if it is missing or unreadable."""
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise ValueError(
            f"{path}: cannot read ({problem.strerror}); give a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from problem
    return decode(data, name=str(path))
