"""Detections from the logits of Mask2Former, computed like GenEval's official detector (reference/benchmarks.md 2).

The post-processing of transformers is not used: it upsamples to 384 x 384 first, then by nearest neighbour, may merge
overlapping instances, and rounds scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from reca.core.finite import demand, finite_rows

Size = tuple[int, int]  # rows, columns
TOP = 100


@dataclass(frozen=True)
class Instance:
    """One detection: class index, box [x1, y1, x2, y2] (x2, y2 exclusive), score, mask [H, W], query index."""

    label: int
    box: tuple[float, float, float, float]
    score: float
    mask: Tensor
    query: int


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: Size,
    resized: Size,
    original: Size,
    top: int = TOP,
) -> list[Instance]:
    """The `top` candidates over all (query, class) pairs, best first.

    `class_logits` [Q, C + 1], the last column for "no object"; `mask_logits` [Q, h, w] at a quarter of the size
    `padded`. Score = class probability x mean of sigmoid(mask) over pixels with a positive mask logit. NonFinite for
    logits that are not finite.
    """
    demand(finite_rows(class_logits[None]) & finite_rows(mask_logits[None]), "detector logits")
    probability = class_logits.float().softmax(-1)[:, :-1]
    classes = probability.shape[1]
    best, flat = probability.flatten().topk(min(top, probability.numel()))
    queries = flat // classes
    masks = upsampled(mask_logits.float(), padded, resized, original)
    used = {int(query): _quality(masks[query]) for query in queries.unique()}
    found = [
        Instance(
            int(index) % classes,
            tight_box(masks[query] > 0),
            float(score * used[int(query)]),
            masks[query] > 0,
            int(query),
        )
        for score, index, query in zip(best, flat, queries, strict=True)
    ]
    return sorted(found, key=lambda i: (-i.score, i.query, i.label))


def upsampled(logits: Tensor, padded: Size, resized: Size, original: Size) -> Tensor:
    """Mask logits [Q, padded / 4] upsampled to `padded`, cropped to `resized`, and resampled to `original` [Q, H, W].

    Both interpolations are bilinear.
    """
    large = functional.interpolate(logits[None], padded, mode="bilinear", align_corners=False)
    cropped = large[..., : resized[0], : resized[1]]
    return functional.interpolate(cropped, original, mode="bilinear", align_corners=False)[0]


def _quality(logits: Tensor) -> Tensor:
    """Mean probability inside the mask, [H, W] logits -> []."""
    inside = (logits > 0).float()
    return (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)


def tight_box(mask: Tensor) -> tuple[float, float, float, float]:
    """The bounding box (x1, y1, x2, y2) of a mask [H, W], x2 and y2 exclusive; all zeros for an empty mask."""
    if not mask.any():
        return (0.0, 0.0, 0.0, 0.0)
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return (
        float(columns.min()),
        float(rows.min()),
        float(columns.max()) + 1,
        float(rows.max()) + 1,
    )
