"""The laptop's image tokenizer: the MAGVIT-v2 classes of Show-o, trained on the world's images.

Loss: L1 + L2 to the image, commitment to the signs, and the entropy term of lookup-free quantisation (bits certain in
each cell, but balanced over the batch). No perceptual or adversarial term: the images are rendered, not photographed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reca.models.showo.config import parse
from reca.models.showo.magvit import Magvit, signs
from reca.models.showo.weights import MAGVIT
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.pictures import read_world

if TYPE_CHECKING:
    from reca.config.schema import Fit

COMMITMENT, ENTROPY = 0.4, 0.2  # fractions of the released tokenizer's loss weights
_COMMITMENT_WEIGHT = 0.125
_ENTROPY_WEIGHT = 0.1
_PROBABILITY_EPS = 1e-6  # keeps the gradient finite for a bit that never changes
FILE = "magvit.safetensors"


def commitment_loss(z: Tensor) -> Tensor:
    """Commitment loss: mean squared distance of latents [B, C, h, w] from their signs, [].

    The golden data of Show-o has cases for this and for `entropy_loss`.
    """
    return _COMMITMENT_WEIGHT * F.mse_loss(z, signs(z))


def entropy_loss(z: Tensor) -> Tensor:
    """Entropy loss of latents [B, C, h, w], []: makes each bit certain and its values equally frequent in the batch.

    A bit is 1 with probability softmax(-|z -+ 1|^2) = sigmoid(4 z). The loss is the weighted difference between the
    mean entropy per cell and the entropy of the mean over all cells, in nats, averaged over channels.
    """
    logits = 4 * z.float()
    probability = logits.sigmoid()
    certainty = F.binary_cross_entropy_with_logits(logits, probability)  # mean entropy of a bit
    used = probability.mean(dim=(0, 2, 3)).clamp(_PROBABILITY_EPS, 1 - _PROBABILITY_EPS)
    diversity = (torch.special.entr(used) + torch.special.entr(1 - used)).mean()
    return _ENTROPY_WEIGHT * (certainty - diversity)


def tokenizer_loss(magvit: Magvit, images: Tensor) -> Tensor:
    """The training loss of a batch of images [B, 3, H, W] in [-1, 1], []."""
    z = magvit.encode(images)
    error = magvit.decode(magvit.quantise(z)) - images
    quantiser = COMMITMENT * commitment_loss(z) + ENTROPY * entropy_loss(z)
    return error.abs().mean() + error.square().mean() + quantiser


def pretrain_tokenizer(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the MAGVIT-v2 of `network` on world `data`; writes `out/magvit.safetensors`, returns the last loss."""
    (config, _), pictures = parse(network), read_world(data)
    magvit = seeded(lambda: Magvit(config.vq), seed, "tokenizer")
    assert isinstance(magvit, Magvit)
    loss = fit(
        magvit,
        lambda indices: tokenizer_loss(magvit, pictures.pixels[list(indices)]),
        recipe,
        size=len(pictures.scenes),
        seed=seed,
        work_dir=work,
        data=pictures.fingerprint,
    )
    MAGVIT.save(magvit, out / FILE)
    return loss
