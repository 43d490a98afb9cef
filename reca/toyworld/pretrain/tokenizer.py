"""The laptop's image tokenizer: the MAGVIT-v2 classes of Show-o, trained on the world's images.

Loss: L1 + L2 to the image, commitment to the signs, and the entropy term of look-up-free
quantisation (sure bits for each cell, but every bit used both ways). No perceptual or adversarial
term: the images are drawn, not photographed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reca.models.showo.magvit import Magvit, commitment_loss, entropy_loss
from reca.models.showo.options import parse
from reca.models.showo.weights import save_official
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.pictures import read_world

if TYPE_CHECKING:
    from reca.config.schema import Fit

COMMITMENT, ENTROPY = 0.4, 0.2  # shares of the released tokenizer's own weights
FILE = "magvit.safetensors"


def tokenizer_loss(magvit: Magvit, images: Tensor) -> Tensor:
    """The training loss of one batch of images [B, 3, H, W] in [-1, 1]."""
    z = magvit.encode(images)
    error = magvit.decode(magvit.quantise(z)) - images
    quantiser = COMMITMENT * commitment_loss(z) + ENTROPY * entropy_loss(z)
    return error.abs().mean() + error.square().mean() + quantiser


def pretrain_tokenizer(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the MAGVIT-v2 of `network` on the world in `data`; writes `out/magvit.safetensors`, gives the last loss."""
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
    save_official(magvit, out / FILE)
    return loss
