"""Harmon's weight files: official names, released manifests, strict loading and saving.

The network (`llm.*`, `mar.*`, `proj_in.*`, `proj_out.*`) and the KL-16 VAE come in files of their own, or together
in the hub's layout, where the VAE's names begin with `vae.`. Source: docs/reference/harmon.md a and f.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca.models.checkpoint_io import load_checkpoint, load_strictly, save_safetensors
from reca.models.harmon.network import Harmon

RELEASED = ("harmon_0.5b", "harmon_1.5b")
TIED, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
VAE = "vae."
WRAPPERS = (
    "state_dict",
    "model",
    "module",
)  # keys under which official pickles may keep their tensors
_OWN = ("llm.", "mar.", "proj_in.", "proj_out.")
_OWN_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_COMPUTED = ".rotary_emb.inv_freq"  # of older transformers; never learned

_SHOWN = 4

_log = logging.getLogger(__name__)


def released_manifest(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Official names, shapes and dtypes of a released model with its VAE, one of `RELEASED`."""
    if name not in RELEASED:
        raise ValueError(f"no manifest of {name!r}; there are: {', '.join(RELEASED)}")
    text = (files("reca.models.harmon.manifests") / f"{name}.json").read_text()
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in json.loads(text).items()}


# ---- the VAE's names ---------------------------------------------------------------------------------
# (diffusers' name, official name), first match of each list counts; {u} counts the decoder's levels from the other end
_PARTS = (
    (r"(en|de)coder\.conv_norm_out\.", r"\1coder.norm_out."),
    (r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d+)\.attentions\.", r"encoder.down.\1.attn."),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"(en|de)coder\.mid_block\.resnets\.0\.", r"\1coder.mid.block_1."),
    (r"(en|de)coder\.mid_block\.resnets\.1\.", r"\1coder.mid.block_2."),
    (r"(en|de)coder\.mid_block\.attentions\.0\.", r"\1coder.mid.attn_1."),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.{u}.block."),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.{u}.upsample."),
)
_LEAVES = (
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
_ATTENTION = re.compile(r"attn.*\.(q|k|v|proj_out)\.weight$")


def official_vae_name(name: str, levels: int) -> str:
    """The official name of a tensor of diffusers' AutoencoderKL with so many levels."""
    for pattern, official in _PARTS:
        if found := re.match(pattern, name):
            if "{u}" in official:
                official = official.replace("{u}", str(levels - 1 - int(found.group(1))))
            name = re.sub(pattern, official, name, count=1)
            break
    for pattern, official in _LEAVES:
        name = re.sub(pattern, official, name)
    return name


def official_vae_state(vae: Any) -> dict[str, Tensor]:
    """The VAE under its official names, without `vae.`; attention weights are 1 x 1 convolutions there."""
    levels = len(vae.config["block_out_channels"])
    state: dict[str, Tensor] = {}
    for name, tensor in vae.state_dict().items():
        official = official_vae_name(name, levels)
        is_attention = _ATTENTION.search(official) is not None
        state[official] = tensor[..., None, None] if is_attention else tensor
    return state


def load_vae(vae: Any, official: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy official tensors into the VAE, strictly; what its training left beside them is left out and reported."""
    levels = len(vae.config["block_out_channels"])
    ours = {official_vae_name(name, levels): name for name in vae.state_dict()}
    tensors = {}
    for name, tensor in _own(official, _OWN_VAE, where).items():
        is_attention = _ATTENTION.search(name) is not None and tensor.shape[2:] == (1, 1)
        tensors[ours.get(name, f"({name})")] = tensor[..., 0, 0] if is_attention else tensor
    load_strictly(vae, tensors, where)


# ---- the network -------------------------------------------------------------------------------------
def official_state(network: Harmon) -> dict[str, Tensor]:
    """The trained network under its released names; the tied head is there, as in the official module."""
    return dict(network.state_dict())


def load_network(network: Harmon, official: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy official tensors into the network, strictly; only the tied head may be absent (cast on load).

    Names of other parts (an optimiser's, say) are left out and reported. ValueError names what is missing, unexpected
    or of another shape, and a head that is not the embedding.
    """
    tensors = _own(official, _OWN, where)
    head = tensors.pop(TIED, None)
    embedding = tensors.get(EMBEDDING)
    if head is not None and (embedding is None or not torch.equal(head, embedding)):
        raise ValueError(f"{where}: {TIED} differs from {EMBEDDING}; Harmon ties the two")
    load_strictly(network, tensors, where, optional=(TIED,))


def _own(
    official: Mapping[str, Tensor], prefixes: tuple[str, ...], where: str | Path
) -> dict[str, Tensor]:
    """The tensors of this part; the rest is named in the log."""
    own = {
        name: tensor
        for name, tensor in official.items()
        if name.startswith(prefixes) and not name.endswith(_COMPUTED)
    }
    if foreign := sorted(official.keys() - own.keys()):
        shown = ", ".join(foreign[:_SHOWN])
        _log.warning("%s: %d tensors are left out: %s", where, len(foreign), shown)
    return own


# ---- files -------------------------------------------------------------------------------------------
def read(
    path: str | Path, sha256: str | None = None, allow_unpinned: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read an official checkpoint: what belongs to the network, and the VAE's part (empty in most files)."""
    tensors = load_checkpoint(path, sha256, allow_unpinned=allow_unpinned, wrappers=WRAPPERS)
    vae = {k.removeprefix(VAE): v for k, v in tensors.items() if k.startswith(VAE)}
    return {k: v for k, v in tensors.items() if not k.startswith(VAE)}, vae


def save_network(network: Harmon, path: str | Path) -> None:
    """Write the network as one safetensors file under its official names; the head is a copy of the embedding."""
    state = official_state(network)
    save_safetensors(state | {TIED: state[TIED].clone()}, path)


def save_vae(vae: Any, path: str | Path) -> None:
    """Write the VAE as one safetensors file under its official names."""
    save_safetensors(official_vae_state(vae), path)
