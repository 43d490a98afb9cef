"""The toy world's observer: its exact examiner reads every object back from the pixels of every image."""

from __future__ import annotations

from typing import Any

import numpy as np

from reca.core.images import decode
from reca.evaluation.observers.view import View
from reca.toyworld import examiner


def observe(view: View) -> dict[str, Any]:
    """Write the detections of every image of the set, in the form of GenEval's."""
    return view.write(
        {"id": key, "sample": index, "detections": examiner.detect(_pixels(data, f"{key}/{index}"))}
        for (key, index), data in view.pictures.items()
    )


def _pixels(data: bytes, name: str) -> np.ndarray:
    return np.asarray(decode(data, name=name).convert("RGB"))
