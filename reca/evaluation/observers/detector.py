"""GenEval's observer: objects and colours of every image, by a segmentation network and CLIP."""

from __future__ import annotations

from typing import Any

from reca.core.images import decode
from reca.evaluation.detectors.mask2former import ClipColours, GenevalEye, Mask2Former
from reca.evaluation.observers.view import Row, View, device, identity, seen, source_folder
from reca.evaluation.tasks.geneval import object_names, official_name
from reca.inference.items import Prompt


def observe(view: View) -> dict[str, Any]:
    """Write the detections of every image; ValueError if the folder of a network is missing."""
    scorer, names = view.benchmark.scorer or "hf-detector", object_names(view.data)
    if scorer not in ("hf-detector", "mmdet-weights"):
        raise ValueError(f"geneval scorer {scorer!r}: must be hf-detector or mmdet-weights")
    folder, official = source_folder(view.data, "detector", "geneval"), scorer == "mmdet-weights"
    clip = source_folder(view.data, "clip", "geneval")
    eye = GenevalEye(
        Mask2Former.open(folder, names, device(), official), ClipColours(clip, device()), names
    )

    def look(item: Prompt, k: int, picture: bytes) -> list[Row]:
        image = decode(picture, name=official_name(item, k))
        return [{"id": item.id, "sample": k, "detections": eye(image, item.facts)}]

    networks = [scorer, identity(folder), identity(clip), names]
    return view.write(seen(view, look, networks, lambda item: item.facts))
