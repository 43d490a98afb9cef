"""The toy world's observer: the exact examiner recovers all objects from the pixels of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from reca.core.images import decode
from reca.evaluation.observers.view import View
from reca.toyworld import examiner


def observe(view: View) -> dict[str, Any]:
    """Write the detections of every image, in GenEval's format."""
    return view.write(
        {"id": key, "sample": index, "detections": examiner.detect(_pixels(data, f"{key}/{index}"))}
        for (key, index), data in view.pictures.items()
    )


def _pixels(data: bytes, name: str) -> np.ndarray:
    return np.asarray(decode(data, name=name).convert("RGB"))
