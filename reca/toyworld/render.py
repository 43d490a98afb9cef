"""The stage that renders a laptop data set: a Hub-style parquet file, read by the same reader as the paper's data.

Columns: `image` (struct of bytes and path, as Hugging Face writes it), `id`, `prompt` (the sparse
caption), `conversations` (JSON list of turn pairs) and `scene` (JSON, for the examiner's use only).
Kind `text` has conversations and no image. Kind `edits` has two rows per edit: the source, and the target, whose
`prompt` is the instruction and whose `source` is the id of the image to change.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reca.core.rng import numpy_generator
from reca.toyworld.edits import EDITS, draw_edit
from reca.toyworld.scenes import Scene, draw_pixels, draw_scene
from reca.toyworld.text import (
    conversation_of,
    image_conversation,
    sparse_caption,
    text_conversation,
)

if TYPE_CHECKING:
    from reca.config.schema import ToyWorld

FILE = "train.parquet"
ROWS_PER_GROUP = 512


def png(pixels: np.ndarray) -> bytes:
    """PNG bytes of a uint8 [H, W, 3] image; equal pixels give equal bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def scenes(count: int, seed: int, single: float) -> Iterator[Scene]:
    """`count` scenes, a fraction `single` of which have one object; scene i depends only on (seed, i)."""
    for index in range(count):
        generator = numpy_generator("world", seed, index, "scene")
        yield draw_scene(generator, count=1 if generator.random() < single else None)


def image_row(index: int, scene: Scene, world: ToyWorld) -> dict[str, Any]:
    """One row of an image set."""
    generator = numpy_generator("world", world.seed, index, "words")
    prompt = sparse_caption(scene, world.caption, generator)
    if world.asks:
        turns = conversation_of(scene, world.asks, generator)
    else:
        turns = image_conversation(scene, generator, world.describes, world.binding)
    return {
        "id": f"scene-{index:06d}",
        "image": {"bytes": png(draw_pixels(scene)), "path": None},
        "prompt": prompt,
        "conversations": json.dumps([turns]),
        "scene": json.dumps(scene.to_json()),
    }


def text_row(index: int, seed: int, binding: float = 0.0) -> dict[str, Any]:
    """One row of a text-only set."""
    turns = text_conversation(numpy_generator("world", seed, index, "text"), binding)
    return {"id": f"text-{index:06d}", "conversations": json.dumps([turns])}


def edit_rows(index: int, seed: int) -> list[dict[str, Any]]:
    """Source and target of one edit; the kinds alternate, and edit i depends only on (seed, i)."""
    made = draw_edit(list(EDITS)[index % len(EDITS)], numpy_generator("world", seed, index, "edit"))
    name, captions = f"edit-{index:06d}", {"source": None, "target": made.instruction}
    return [
        {
            "id": f"{name}/{side}",
            "image": {"bytes": png(draw_pixels(scene)), "path": None},
            "prompt": captions[side],
            "source": f"{name}/source" if side == "target" else None,
            "scene": json.dumps(scene.to_json()),
        }
        for side, scene in (("source", made.source), ("target", made.target))
    ]


def render(world: ToyWorld, out: Path) -> int:
    """Write `out/train.parquet` and return its number of rows; equal sections give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if world.kind == "text":
        rows = [text_row(index, world.seed, world.binding) for index in range(world.images)]
    elif world.kind == "edits":
        rows = [row for index in range(world.images) for row in edit_rows(index, world.seed)]
    else:
        drawn = scenes(world.images, world.seed, world.single_object_share)
        rows = [image_row(i, scene, world) for i, scene in enumerate(drawn)]
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out / FILE, row_group_size=ROWS_PER_GROUP)
    return len(rows)
