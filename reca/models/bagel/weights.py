"""BAGEL's weight files: official names, strict loading without a second copy.

A model consists of two files: the network (`ema.safetensors` of the base, `model_bf16.safetensors` of RecA) and the VAE
(`ae.safetensors`). Source: docs/reference/bagel.md 1 and 6.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from reca.models.bagel.network import GEN, Bagel, FixedTable
from reca.models.checkpoint_io import manifest_of
from reca.models.common.embeddings import sincos_table
from reca.models.common.naming import VAE, Naming
from reca.models.streaming import assign_strictly

NETWORK = Naming()  # released under our names
TRAINED = (
    GEN,
    "time_embedder.",
    "vae2llm.",
    "llm2vae.",
)  # name parts of the weights that RecA trains


def is_trained(name: str) -> bool:
    """Whether RecA trains the network's weight of this name (bagel.md 5)."""
    return any(part in name for part in TRAINED)


def load_network(network: Bagel, path: str | Path) -> None:
    """Load an official (or our own) checkpoint into a network, which may be on `meta`.

    Weights keep the dtype that the network was built with. ValueError names the file and any mismatch, such as a
    changed position table.
    """
    own = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    assign_strictly(network, path, dtype=own.__getitem__)
    for name, module in network.named_modules():
        if isinstance(module, FixedTable):
            _check_table(name, module, path)


def _check_table(name: str, module: FixedTable, path: str | Path) -> None:
    table = module.pos_embed
    assert isinstance(table, Tensor)
    exact = sincos_table(round(len(table) ** 0.5), table.shape[1])
    if not torch.allclose(table.float(), exact, atol=8e-3):  # bfloat16 files round it
        raise ValueError(
            f"{path}: {name}.pos_embed differs from the sine-cosine table; fetch it again"
        )
    module._buffers["pos_embed"] = exact


def load_vae(vae: nn.Module, path: str | Path) -> None:
    """Load `ae.safetensors` (or our own file under the same names), strictly."""
    ours = {official: name for name, official in VAE.official(vae).items()}

    def convert(official: str, tensor: Tensor) -> tuple[str, Tensor]:
        return ours[official], VAE.inward(official, tensor)

    expected = manifest_of(VAE.state(vae))
    assign_strictly(vae, path, convert=convert, dtype=lambda _: torch.float32, expected=expected)
