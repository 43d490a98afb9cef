"""The observer of reconstructions: pixel metrics, cosine similarities of optional networks, Inception features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reca.core.artifacts import sha256_bytes
from reca.core.finite import demand_numbers
from reca.core.images import decode, original_of
from reca.evaluation.detectors.inception import InceptionFeatures
from reca.evaluation.detectors.mask2former import pinned_file
from reca.evaluation.detectors.similarity import Alike, CosineAlike, Lpips, LpipsAlike
from reca.evaluation.files import FEATURES
from reca.evaluation.observers.view import Row, View, device, identity, seen
from reca.evaluation.tasks.reconstruction import psnr, ssim
from reca.inference.items import Prompt
from reca.models.checkpoint_io import save_safetensors

DROPPED = ("features", "sha256")  # the one for a file of their own, the other is no measure


def observe(view: View) -> dict[str, Any]:
    """Write the similarity of each original to its reconstruction, and Inception features if that network is given."""
    measures: dict[str, Alike] = _measures(view.data)
    inception = _inception(view.data)
    features: dict[str, list[Any]] = {"true": [], "redrawn": []}

    def look(item: Prompt, k: int, picture: bytes) -> list[Row]:
        again = decode(picture, name=item.id)
        truth = original_of(view.sources[item.id], name=item.id).resize(again.size)
        row: Row = {"id": item.id}
        row |= {name: measure(truth, again) for name, measure in measures.items()}
        demand_numbers({f"values of {name}": row[name] for name in measures})
        arrays = [np.asarray(image.convert("RGB")) for image in (truth, again)]
        row |= {"psnr": psnr(*arrays), "ssim": ssim(*arrays)}
        if inception is not None:
            row["features"] = [inception(image).tolist() for image in (truth, again)]
            demand_numbers({"Inception features": sum(map(sum, row["features"]))})
        return [row]

    networks = {role: identity(folder) for role, folder in view.data.items() if role != "images"}

    def original(item: Prompt) -> str:
        return sha256_bytes(view.sources[item.id])

    def rows() -> Iterator[Row]:
        for row in seen(replace(view, samples=1), look, networks, original):
            if "features" in row:
                for name, values in zip(features, row["features"], strict=True):
                    features[name].append(values)
            yield {name: value for name, value in row.items() if name not in DROPPED}

    facts = view.write(rows())
    if inception is not None:
        tensors = {name: torch.tensor(rows) for name, rows in features.items()}
        save_safetensors(tensors, view.out / FEATURES)
    return facts


def _measures(data: Mapping[str, Path]) -> dict[str, Any]:
    """The similarity networks whose folders are given; each is optional."""
    found: dict[str, Any] = {}
    if "alexnet" in data and "lpips" in data:
        files = pinned_file(data["alexnet"], "*.pth"), pinned_file(data["lpips"], "*.pth")
        found["lpips"] = LpipsAlike(Lpips.open(*files), device())
    if "clip" in data:
        found["clip"] = CosineAlike.clip(data["clip"], device())
    if "dino" in data:
        found["dino"] = CosineAlike.dino(data["dino"], device())
    return found


def _inception(data: Mapping[str, Path]) -> Any:
    if "inception" not in data:
        return None
    return InceptionFeatures.open(*pinned_file(data["inception"], "*.pth"), device())
