"""The toy world's observer: the exact examiner recovers all objects from the pixels of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from reca.core.images import decode
from reca.evaluation.observers.view import View
from reca.toyworld import examiner


def observe(view: View) -> dict[str, Any]:
    """Write the detections of every image, in GenEval's format; ValueError names an unusable image."""
    return view.write(
        {"id": key, "sample": index, "detections": _seen(data, f"{key}/{index}", view)}
        for (key, index), data in view.pictures.items()
    )


def _seen(data: bytes, name: str, view: View) -> list[dict[str, Any]]:
    pixels = np.asarray(decode(data, name=name).convert("RGB"))
    try:
        return examiner.detect(pixels)
    except ValueError as error:
        raise ValueError(f"benchmark {view.benchmark.kind}: image {name}: {error}") from error
