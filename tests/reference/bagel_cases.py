"""What the golden tests of BAGEL share: a model of a case's sizes and weights, and pictures through its encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reca.core.structure import build
from reca.models.bagel.config import BagelConfig, BagelOptions
from reca.models.bagel.model import BagelModel
from reca.models.bagel.vision import patchify, position_ids
from reca.models.bagel.weights import VAE
from tests.reference import golden_cases as golden


def config_of(described: dict[str, Any]) -> BagelConfig:
    """Our configuration of a case."""
    sizes = described["config"]
    llm = {k: v for k, v in sizes["llm"].items() if k != "max_position_embeddings"}
    vae = {k: sizes["vae"][k] for k in ("ch", "ch_mult", "num_res_blocks", "z_channels")}
    vae |= {k: sizes["vae"][k] for k in ("scale_factor", "shift_factor")}
    stride = 2 ** (len(vae["ch_mult"]) - 1) * sizes["latent_patch_size"]
    return build(
        BagelConfig,
        {
            "llm": llm,
            "vit": sizes["vit"],
            "vae": vae,
            "special": described["special_tokens"],
            "latent_patch_size": sizes["latent_patch_size"],
            "max_latent_size": sizes["max_latent_size"],
            "vit_max_num_patch_per_side": sizes["vit_max_num_patch_per_side"],
            "resolution": stride,
            "condition_resolution": sizes["vit"]["patch_size"],
        },
    )


def model_of(described: dict[str, Any], **options: Any) -> BagelModel:
    """A model filled as the reference was."""
    model = BagelModel(config_of(described), BagelOptions(**options))
    golden.fill_(model.network, described["seed"], family="bagel")
    fill_vae_(model, described["seed"])
    return model.eval()


def fill_vae_(model: BagelModel, seed: int) -> None:
    """Values go by official name and shape, which are not those of diffusers."""
    vae = model.frozen.vae
    official = OfficialState(VAE.state(vae))
    golden.fill_(official, seed, "vae.", family="bagel")


class OfficialState(torch.nn.Module):
    """Looks to `fill_` like a module with the official names; writes reach the tensors given."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.tensors.items()}


def vit_states(model: BagelModel, pixels: list[Tensor]) -> Tensor:
    """ViT states [S, D] of pictures of any sizes, one after another."""
    states, real = model.reader._states(model.network, pixels)
    return torch.cat([rows[:n] for rows, n in zip(states, real, strict=True)])


def cropped_tokens(latent: Tensor, grids: list[tuple[int, int]], patch: int) -> Tensor:
    """Latent tokens of pictures whose latents were padded to the largest, [S, C]."""
    rows = []
    for one, (high, wide) in zip(latent, grids, strict=True):
        rows.append(patchify(one[:, : high * patch, : wide * patch], patch))
    return torch.cat(rows)


def latent_ids(model: BagelModel, grid: tuple[int, int]) -> Tensor:
    return position_ids(grid, model.config.max_latent_size)
