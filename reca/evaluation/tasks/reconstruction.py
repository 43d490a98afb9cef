"""Reconstruction quality, which the paper does not report (reference/benchmarks.md 9).

PSNR and SSIM are computed here; LPIPS, CLIP and DINO cosines and Inception features come from the observer, as rows and
a feature file. rFID compares the two sets of features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from reca.core.walk import entries
from reca.data.readers.folder import IMAGE_SUFFIXES, natural_key
from reca.evaluation.graded import Graded, coverage_of, interval, mean
from reca.evaluation.reading import archive
from reca.inference.items import Prompt

VERSION = "reca 2 (beyond the paper)"  # 2: of the central square of each original
ROLES = ("images",)
PIXELS = ("psnr", "ssim")
NEURAL = ("lpips", "clip", "dino")
HIGHEST = 255.0
SIGMA, RADIUS = 1.5, 5  # the 11 x 11 Gaussian window of Wang et al. 2004
K1, K2 = 0.01, 0.03
CAP = 100.0  # dB; PSNR of equal images, so that means stay finite


# ---- data ------------------------------------------------------------------------------------------
def pictures(data: Mapping[str, Path], count: int) -> list[tuple[Prompt, bytes]]:
    """The first `count` images (0: all) of a folder and the tar files in it, in natural order of names.

    ValueError if there are none.
    """
    files = _files(Path(data["images"]))
    if not files:
        raise ValueError(
            f"{data['images']}: contains no images, as files or in tar files; give another folder"
        )
    found = []
    for index, name in enumerate(sorted(files, key=natural_key)[: count or None]):
        path, offset, size = files[name]
        with open(path, "rb") as file:  # members of an archive are read in place
            file.seek(offset)
            facts = {"name": name}
            found.append((Prompt(f"{index:06d}", "", "reconstruction", facts), file.read(size)))
    return found


def _files(folder: Path) -> dict[str, tuple[Path, int, int]]:
    """File, offset and length of every image, by its name."""
    found: dict[str, tuple[Path, int, int]] = {}
    for path in sorted(entries(folder)):
        if path.suffix == ".tar":
            with archive(path) as tar:
                for member in tar:
                    if member.isreg() and member.name.lower().endswith(IMAGE_SUFFIXES):
                        name = f"{path.name}/{member.name}"
                        found[name] = (path, member.offset_data, member.size)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            found[path.relative_to(folder).as_posix()] = (path, 0, path.stat().st_size)
    return found


# ---- scores: pure ----------------------------------------------------------------------------------
def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images [H, W, 3]; 100 for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return min(CAP, 10 * np.log10(HIGHEST**2 / error)) if error else CAP


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two uint8 images [H, W, 3], averaged over channels and pixels 5 or more from the border.

    ValueError if the images are smaller than the 11 x 11 window.
    """
    if min(one.shape[:2]) <= 2 * RADIUS:
        raise ValueError(
            f"ssim: an image of {one.shape[:2]} pixels is smaller than the window; images need at least 11 x 11 pixels"
        )
    return float(np.mean([_ssim(one[..., c], other[..., c]) for c in range(one.shape[-1])]))


def _ssim(one: np.ndarray, other: np.ndarray) -> float:
    x, y = one.astype(np.float64), other.astype(np.float64)
    mx, my = _window(x), _window(y)
    vx, vy, vxy = _window(x * x) - mx * mx, _window(y * y) - my * my, _window(x * y) - mx * my
    c1, c2 = (K1 * HIGHEST) ** 2, (K2 * HIGHEST) ** 2
    value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(value[RADIUS:-RADIUS, RADIUS:-RADIUS].mean())


def _window(values: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(values, SIGMA, radius=RADIUS, mode="reflect")


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The Frechet distance of Gaussians fitted to two sets of features [N, D], N >= 2, in float64.

    ValueError if a feature is not finite.
    """
    if not all(np.isfinite(rows).all() for rows in (one, other)):
        raise ValueError("rfid: Inception features are not finite; run `reca observe` again")
    means = [rows.astype(np.float64).mean(0) for rows in (one, other)]
    first, second = (np.cov(rows.astype(np.float64), rowvar=False) for rows in (one, other))
    shared = np.linalg.eigvals(first @ second)
    root = np.sqrt(np.clip(shared.real, 0, None)).sum()  # real and >= 0 up to rounding
    shift = float(((means[0] - means[1]) ** 2).sum())
    return float(shift + np.trace(first) + np.trace(second) - 2 * root)


def grade(
    names: Sequence[str],
    evidence: Iterable[Mapping[str, Any]],
    features: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    partial: bool = False,
) -> Graded:
    """Means of all metrics over the images, and `rfid` if Inception features (originals, reconstructions) are given.

    rFID of fewer than 5,000 images is biased; `notes` has their number.
    """
    rows = {row["id"]: row for row in evidence}
    coverage = coverage_of((n, "scored" if n in rows else "missing") for n in names)
    coverage.demand("reconstruction", partial)
    items = [dict(rows[n]) for n in names if n in rows]
    measured = [m for m in (*PIXELS, *NEURAL) if items and all(m in row for row in items)]
    shown: dict[str, float | None] = {m: mean([row[m] for row in items]) for m in measured}
    shown["overall"] = shown.get("psnr")
    limits = {m: interval(("all", row["id"], row[m]) for row in items) for m in measured}
    notes: dict[str, Any] = {}
    if features is not None and len(features[0]) > 1:  # a single image has no covariance
        shown["rfid"], notes["rfid_pictures"] = frechet(*features), len(features[0])
    return Graded(shown, items, coverage, {k: v for k, v in limits.items() if v}, notes)
