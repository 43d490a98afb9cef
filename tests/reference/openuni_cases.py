"""What the golden tests of OpenUni share: a model of a case's sizes and weights."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from reca.core.structure import build
from reca.models.openuni import weights
from reca.models.openuni.config import OpenUniConfig, OpenUniOptions
from reca.models.openuni.encoders import FrozenVae
from reca.models.openuni.network import OpenUni
from tests.reference import golden_cases as golden

# Of the answers' loss; tests/kernels runs it once more with triton, in the interpreter.
IMPLEMENTATION: Any = os.environ.get("RECA_TEST_IMPLEMENTATION", "torch")
GRADIENT = 2e-4  # openuni.md f1: of a tensor's largest value
VALUE = 2e-5  # activations and losses

# Sizes of parts that a case does not have (stochastic depth has a ViT and a language model only).
_CONNECTOR = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
_SANA = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "num_cross_attention_heads": 1,
         "cross_attention_head_dim": 8, "caption_channels": 8, "mlp_ratio": 2.5, "qk_norm": None,
         "interpolation_scale": None}  # fmt: skip


def config_of(described: dict[str, Any]) -> OpenUniConfig:
    """Our configuration of a case."""
    given = described["config"]
    sana, llm, vision = given.get("sana", _SANA), given["llm"], given["vision"]
    width = llm["hidden_size"]
    connector = given.get("connector", _CONNECTOR | {"hidden_size": width})
    assert connector["hidden_size"] == width
    section: dict[str, Any] = {
        "llm": {k: v for k, v in llm.items() if k not in ("tie_word_embeddings", "hidden_act")},
        "vit": {k: vision[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads", "image_size", "patch_size", "drop_path_rate")},
        "connector": {k: v for k, v in connector.items() if k != "hidden_size"},
        "sana": {k: sana[k] for k in ("num_layers", "num_attention_heads", "attention_head_dim",
                 "num_cross_attention_heads", "cross_attention_head_dim", "caption_channels", "mlp_ratio")},
        "queries": given.get("num_queries", 1),
        "special": {"image_start": given.get("img_start_id", 0), "image_end": given.get("img_end_id", 1),
                    "image": given.get("image_token_id", 2), "end": 3},
    }  # fmt: skip
    section["sana"] |= {
        "qk_norm": sana["qk_norm"] or "none",
        "interpolation_scale": float(sana["interpolation_scale"] or 0),
    }
    if vae := given.get("vae"):
        scales = [tuple(scale) for scale in vae["encoder_qkv_multiscales"] if scale]
        section["vae"] = {
            "latent_channels": vae["latent_channels"],
            "attention_head_dim": vae["attention_head_dim"],
            "channels": vae["encoder_block_out_channels"],
            "encoder_layers": vae["encoder_layers_per_block"],
            "decoder_layers": vae["decoder_layers_per_block"],
            "residual": vae["encoder_block_types"].count("ResBlock"),
            "multiscale": scales[0][0] if scales else 5,
            "scaling_factor": vae["scaling_factor"],
        }
        section["resolution"] = given["pixels"]
    return build(OpenUniConfig, section, "network")


def fill(module: nn.Module, naming: Any, seed: int) -> None:
    """Give every weight the value of its official name."""
    filling, state = golden.filling("openuni"), naming.state(module)
    drawn = {n: torch.from_numpy(filling.draw(n, tuple(t.shape), seed)) for n, t in state.items()}
    naming.load(module, drawn, "fill.py")


@lru_cache(maxsize=2)
def _network(case: str) -> tuple[OpenUni, dict[str, Any], dict[str, Tensor]]:
    described, stored = golden.load("openuni", case)
    network = OpenUni(config_of(described))
    fill(network.lmm, weights.READER, described["seed"])
    fill(network, weights.RELEASED, described["seed"])
    return network.eval(), described, stored


class Case:
    """A golden case with its network, and the autoencoder where it has one."""

    def __init__(self, name: str) -> None:
        self.network, self.described, self.stored = _network(name)
        self.config = self.network.config
        self.options = OpenUniOptions(implementation=IMPLEMENTATION)

    def vae(self) -> FrozenVae:
        """The autoencoder, filled."""
        frozen = FrozenVae(self.config.vae)
        state = {f"vae.{n}": t for n, t in frozen.vae.state_dict().items()}
        filling = golden.filling("openuni")
        drawn = {n.removeprefix("vae."): torch.from_numpy(filling.draw(n, tuple(t.shape), self.described["seed"]))
                 for n, t in state.items()}  # fmt: skip
        frozen.vae.load_state_dict(drawn)
        return frozen.eval()

    def same(self, name: str, found: Tensor, relative: float = VALUE) -> None:
        """Compare with what is stored under this name, if anything is."""
        golden.assert_same(name, found, self.stored[name], relative)
