"""draw, reconstruct, edit, ask: one image at a time, with any model folder."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.core.ownership import check_file

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ALIGNED = "results/laptop/*/reca/seed-*/reca_model.json"
FIRST = (
    "weights/showo_tiny/reca_model.json"  # the default experiment's own, whatever else is shipped
)
SHIPPED = "weights/*/reca_model.json"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SOFTWARE, DRAWN_BY = 0x0131, "reca"  # the EXIF field, by which an image is known as ours


def model_folder(named: str | None) -> Path:
    """The folder named, else the newest aligned laptop model, else the shipped base weights, which is then printed."""
    if named is not None:
        return Path(named)
    for pattern in (ALIGNED, FIRST, SHIPPED):
        found = sorted(Path().glob(pattern), key=lambda path: path.stat().st_mtime)
        if found:
            chosen = found[-1].parent
            print(f"model: {chosen} (choose another with --model)", file=sys.stderr)
            return chosen
    raise ValueError("no model here yet; run `make reproduce`, or name a model folder with --model")


def draw(arguments: Namespace) -> None:
    """Draw a prompt."""
    from reca.inference import interactive

    out, folder = _picture_file(arguments.out), model_folder(arguments.model)
    _save(interactive.draw(folder, arguments.prompt, **_drawing(arguments)), out)


def reconstruct(arguments: Namespace) -> None:
    """Draw an image again from its understanding embeddings."""
    from reca.data.prompts import bank
    from reca.inference import interactive

    out = _picture_file(arguments.out, arguments.image)
    image = interactive.reconstruct(
        model_folder(arguments.model),
        arguments.image,
        # The laptop bank is short: also a laptop model's words hold its first prompt.
        prompt=bank("laptop")[0] if arguments.prompt is None else arguments.prompt,
        **_drawing(arguments),
    )
    _save(image, out)


def edit(arguments: Namespace) -> None:
    """Edit an image by an instruction."""
    from reca.inference import interactive

    extra = {"image_guidance": arguments.image_guidance, "renormalise": "text_channel"}
    out = _picture_file(arguments.out, arguments.image)
    folder = model_folder(arguments.model)
    drawing = _drawing(arguments)
    image = interactive.edit(
        folder, arguments.image, arguments.instruction, options=extra, **drawing
    )
    _save(image, out)


def ask(arguments: Namespace) -> None:
    """Answer a question about an image."""
    from reca.inference import interactive

    answer = interactive.ask(
        model_folder(arguments.model),
        arguments.image,
        arguments.question,
        max_new_tokens=arguments.max_new_tokens,
        device=arguments.device,
    )
    print(answer)


def _drawing(arguments: Namespace) -> dict[str, Any]:
    """Sampling arguments for `reca.inference.interactive`; defaults of the family are left out."""
    from reca.models.contract import Sampling

    named = {"guidance": arguments.guidance, "steps": arguments.steps}
    given = {name: value for name, value in named.items() if value is not None}
    Sampling(**given)  # what no sampler can use is refused before a model is read
    return {"seed": arguments.seed, "device": arguments.device, **given}


def _picture_file(out: str, read: str | None = None) -> Path:
    """The file to write, checked before anything is drawn: only an image that reca drew is replaced.

    ValueError for an ending that is no image's, another's file, and the image that is read.
    """
    path = Path(out)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out}: name a file that ends in {', '.join(FORMATS)}")
    check_file("--out", path, _is_drawn)
    if read is not None and path.resolve() == Path(read).resolve():
        raise ValueError(f"--out {out}: is the picture that is read; name another file")
    return path


def _is_drawn(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=tuple(FORMATS.values())) as image:
            return image.getexif().get(SOFTWARE) == DRAWN_BY
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _save(image: Picture, out: Path) -> None:
    """Write the whole image or nothing; a full disk or a read-only folder is named with the file."""
    from PIL import Image

    from reca.core.artifacts import write_atomic

    mark, encoded = Image.Exif(), io.BytesIO()
    mark[SOFTWARE] = DRAWN_BY
    image.save(encoded, format=FORMATS[out.suffix.lower()], exif=mark)
    write_atomic(out, encoded.getvalue())
    print(out)
