"""BAGEL's pictures against the official code: resize table, transform, transparency, patches, VAE, file order."""

from __future__ import annotations

import io
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from reca.core.images import decode
from reca.models.bagel import weights
from reca.models.bagel.vision import decoded, patchify, prepared, resized, unpatchify
from tests.reference import bagel_cases as bagel
from tests.reference import golden_cases as golden

PREPROCESS = golden.cases("bagel", __file__, "preprocess*")
VAE = golden.cases("bagel", __file__, "vae*")
ORDER = golden.cases("bagel", __file__, "data_order*")


def official_rank_order(n: int, rank: int, world: int, seed: int = 42) -> list[int]:
    """The order in which BAGEL's official loader reads n files on one rank with one worker, the same every epoch.

    Files sorted by (tar, name) are shuffled once; each rank gets an equal contiguous slice (the remainder is dropped)
    and reads it backwards. Kept to reproduce the published order; our own runs use `Cursor`. Source: bagel.md
    2.
    """
    order = list(range(n))
    random.Random(seed).shuffle(order)
    share = n // world
    return order[rank * share : (rank + 1) * share][::-1]


@pytest.mark.parametrize("name", PREPROCESS)
def test_resize_table(name):
    described, _ = golden.load("bagel", name)
    checked = 0
    for rule, rows in described["resize_sizes"].items():
        most, least, stride = (int(part) for part in rule.split("_")[-3:])
        for row in rows:
            wide, high = resized(tuple(row["in_wh"]), most, least, stride, described["max_pixels"])
            assert [high, wide] == row["out_hw"], f"{rule} of {row['in_wh']}"
            checked += 1
    assert checked


@pytest.mark.parametrize("name", PREPROCESS)
def test_transform_and_patches(name):
    described, stored = golden.load("bagel", name)
    picture = Image.fromarray(stored["image_uint8"].numpy())
    patch = int(_words(described, "patches").removesuffix(")").split(", ")[-1])
    most, least, stride = _rule(described)
    pixels = prepared(picture, most, least, stride)
    golden.assert_same("transformed", pixels, stored["transformed"])
    rows = patchify(pixels, patch)
    golden.assert_same("patches", rows, stored["patches"])
    grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
    assert torch.equal(unpatchify(rows, grid, patch), pixels)


def _rule(described: dict) -> tuple[int, int, int]:
    """The words of the json: `... max 56 / min 28 / stride 14`."""
    words = _words(described, "transformed")
    found = [re.search(rf"{name} (\d+)", words) for name in ("max", "min", "stride")]
    most, least, stride = (int(one[1]) for one in found if one)
    return most, least, stride


def _words(described: dict, name: str) -> str:
    return described["tensors"][name]["what"]


@pytest.mark.parametrize("name", PREPROCESS)
def test_transparency_is_pasted_on_white(name):
    _, stored = golden.load("bagel", name)
    file = io.BytesIO()
    Image.fromarray(stored["rgba_uint8"].numpy()).save(file, format="PNG")
    found = torch.from_numpy(np.array(decode(file.getvalue(), name="rgba")))
    golden.assert_same("rgb", found, stored["rgba_to_rgb"])


@pytest.mark.parametrize("name", VAE)
@torch.no_grad()
def test_vae(name):
    described, stored = golden.load("bagel", name)
    model = bagel.model_of(described)
    assert sorted(weights.VAE.state(model.frozen.vae)) == sorted(described["state_dict_names"])
    moments = model.frozen.moments(stored["x"])
    golden.assert_same("moments", moments, stored["moments"])
    latent = model.frozen.latents(moments, stored["posterior_noise"])
    golden.assert_same("latent", latent, stored["latent"])
    again = decoded(model.frozen.vae, latent, model.config.vae)
    golden.assert_same("recon", again, stored["recon"])


@pytest.mark.parametrize("name", ORDER)
def test_official_file_order(name):
    described, _ = golden.load("bagel", name)
    n, world = described["n_items"], described["world_size"]
    orders = [official_rank_order(n, rank, world) for rank in range(world)]
    assert orders == described["per_rank_read_order"]
    assert [order[::-1] for order in orders] == described["per_rank_before_reverse"]
    assert sorted(set(range(n)) - {i for order in orders for i in order}) == sorted(
        described["dropped"]
    )
