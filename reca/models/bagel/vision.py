"""BAGEL's vision modules: the SigLIP2 NaViT, the FLUX autoencoder, patches and the resize rule.

Source: docs/reference/bagel.md 1, 2 and 6. Letters: B images, P patches, N latent tokens, C values per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from reca.core.images import to_tensor
from reca.models.bagel.config import VaeConfig, VisionConfig
from reca.models.common.autoencoder_kl import AutoencoderKL
from reca.models.common.vision import VisionEncoder

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 14 * 14 * 9 * 1024
_EPSILON = 1e-6  # of SigLIP's layer norms


# ---- resize rule and patches -------------------------------------------------------------------
def resized(
    size: tuple[int, int], most: int, least: int, stride: int, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The resize rule R of bagel.md 2 for one image's (width, height); rounding is Python's (half to even)."""
    width, height = size
    scale = max(min(most / max(size), 1), least / min(size))
    width, height = _strided(width, height, scale, stride)
    if width * height > max_pixels:
        # an area ratio used as a side ratio, as published
        width, height = _strided(width, height, max_pixels / (width * height), stride)
    if max(width, height) > most:
        width, height = _strided(width, height, most / max(width, height), stride)
    return width, height


def _strided(width: int, height: int, scale: float, stride: int) -> tuple[int, int]:
    sides = (max(stride, round(round(side * scale) / stride) * stride) for side in (width, height))
    wide, high = sides
    return wide, high


def prepared(image: Image, most: int, least: int, stride: int) -> Tensor:
    """An image resized by R (bicubic, no crop) as pixels [3, H, W] in [-1, 1]."""
    size = resized(image.size, most, least, stride)
    return to_tensor(image.resize(size, Pillow.Resampling.BICUBIC))


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """[..., C, H, W] -> [..., P, patch * patch * C] in raster order; each row is (row, column, channel) of a patch."""
    patches = pixels.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))  # ... C h p w q
    patches = patches.movedim(-5, -1)  # ... h p w q C
    patches = patches.transpose(-4, -3)  # ... h w p q C
    return patches.flatten(-3).flatten(-3, -2)


def unpatchify(rows: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `patchify` for a grid (rows, columns): [..., P, patch * patch * C] -> [..., C, H, W]."""
    patches = rows.unflatten(-2, grid).unflatten(-1, (patch, patch, -1))  # ... h w p q C
    patches = patches.transpose(-4, -3).movedim(-1, -5)  # ... C h p w q
    return patches.flatten(-4, -3).flatten(-2)


def position_ids(grid: tuple[int, int], side: int) -> Tensor:
    """Ids row * side + column of a grid's patches, [P]; ValueError if the table is too small."""
    if max(grid) > side:
        raise ValueError(
            f"an image of {grid[0]} x {grid[1]} patches does not fit the position table of {side} x {side}; "
            "use a smaller image"
        )
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    return (rows.unsqueeze(1) * side + columns).flatten()


def positions(grid: Tensor, length: int, side: int) -> tuple[Tensor, Tensor | None]:
    """Position ids [B, P] of padded patches on grids [B, 2], and the mask of real ones, [B, P] (None: all)."""
    grids = [(int(high), int(wide)) for high, wide in grid.tolist()]
    if len(set(grids)) == 1 and grids[0][0] * grids[0][1] == length:
        return position_ids(grids[0], side).expand(len(grids), -1), None
    ids, valid = padded([position_ids(one, side) for one in grids])
    missing = length - ids.shape[1]
    return nn.functional.pad(ids, (0, missing)), nn.functional.pad(valid, (0, missing))


# ---- the ViT -----------------------------------------------------------------------------------
class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(config.side**2, config.hidden_size)


class _VisionModel(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = VisionEncoder(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            hidden_act="gelu_pytorch_tanh",
            epsilon=_EPSILON,
        )
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=_EPSILON)


class VisionTower(nn.Module):
    """SigLIP2 for images of any size: patches to states after the last layer norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_model = _VisionModel(config)

    def forward(self, patches: Tensor, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """States [B, P, Dvit] of patches [B, P, 3 p p] at position ids [B, P].

        `valid` [B, P] marks real patches; each image attends to itself only.
        """
        model = self.vision_model
        weight = model.embeddings.patch_embedding.weight
        hidden = model.embeddings.patch_embedding(patches.to(weight.dtype))
        hidden = hidden + model.embeddings.position_embedding(ids)
        mask = None
        if valid is not None and not bool(valid.all()):
            seen = valid.unsqueeze(1) | torch.eye(
                valid.shape[1], dtype=torch.bool, device=valid.device
            )
            mask = seen.unsqueeze(1)  # pads see themselves, so no row is empty
        return model.post_layernorm(model.encoder(hidden, mask))


# ---- the autoencoder ---------------------------------------------------------------------------
def build_vae(config: VaeConfig) -> nn.Module:
    """FLUX's autoencoder with these sizes; scale and shift are applied separately."""
    return AutoencoderKL(
        [config.ch * factor for factor in config.ch_mult],
        resnets=config.num_res_blocks,
        latent_channels=config.z_channels,
        groups=config.norm_groups,
        quant_conv=False,
    )


def latents(found: Tensor, noise: Tensor, config: VaeConfig) -> Tensor:
    """A scaled posterior sample [B, z, h, w] from moments and standard normal noise (bagel.md 2)."""
    mean, log_variance = found.chunk(2, dim=1)
    drawn = mean + torch.exp(0.5 * log_variance) * noise
    return config.scale_factor * (drawn - config.shift_factor)


def decoded(vae: nn.Module, scaled: Tensor, config: VaeConfig) -> Tensor:
    """Pixels [B, 3, H, W] of scaled latents, in [-1, 1] except for overshoot."""
    return vae.get_submodule("decoder")(scaled / config.scale_factor + config.shift_factor)


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [P_i, ...] zero-padded to one tensor [B, P, ...], and the mask of real rows, [B, P]."""
    lengths = torch.tensor([len(row) for row in rows])
    joined = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return joined, torch.arange(joined.shape[1]) < lengths.unsqueeze(1)
