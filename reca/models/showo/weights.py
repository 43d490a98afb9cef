"""Show-o's weight files: official names, released manifests, strict loading and saving.

Three files make a model: the Show-o network, the MAGVIT-v2 tokenizer and, for the CLIP variant, the
CLIP vision tower. Source: docs/reference/showo.md 1.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from reca.models.checkpoint_io import load_checkpoint, load_strictly, save_safetensors
from reca.models.showo.magvit import Magvit
from reca.models.showo.network import Showo

RELEASED = ("show-o", "show-o-w-clip-vit", "magvitv2", "clip-vit-large-patch14-336")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Naming:
    """How an official file relates to a module: official name = `prefix` + our name.

    `foreign` starts the names of tensors that official files may hold beside ours; they are left
    out and reported. `constants` are computed by us: they may be absent, but must not differ.
    """

    prefix: str = ""
    foreign: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


NAMINGS: dict[type[nn.Module], Naming] = {
    Showo: Naming(),
    Magvit: Naming(constants=("quantize.embedding", "quantize.power_vals")),
    # transformers 5 dropped the prefix; the hub's file also holds the text half of CLIP
    CLIPVisionModel: Naming(
        prefix="vision_model.",
        foreign=(
            "text_model.",
            "text_projection.",
            "visual_projection.",
            "logit_scale",
            "vision_model.embeddings.position_ids",
        ),
    ),
}


def released_manifest(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Official names, shapes and dtypes of a released checkpoint, one of `RELEASED`."""
    if name not in RELEASED:
        raise ValueError(f"no manifest of {name!r}; there are: {', '.join(RELEASED)}")
    text = (files("reca.models.showo.manifests") / f"{name}.json").read_text()
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in json.loads(text).items()}


def official_state(module: nn.Module) -> dict[str, Tensor]:
    """The content of a Show-o network, tokenizer or CLIP tower under its official names."""
    prefix = _naming(module).prefix
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def load_official(
    module: nn.Module, path: str | Path, *, sha256: str | None = None, allow_unpinned: bool = False
) -> None:
    """Load an official (or our own) checkpoint file or folder into its module, strictly.

    `path`, `sha256` and `allow_unpinned` are those of `reca.models.checkpoint_io.load_checkpoint`.
    ValueError names the file and what is missing, unexpected, of another shape or kind, or a
    changed constant.
    """
    naming = _naming(module)
    official = load_checkpoint(path, sha256, allow_unpinned=allow_unpinned)
    foreign = [name for name in official if name.startswith(naming.foreign)]
    if foreign:
        _log.info("%s: %d tensors are not part of this model and are left out", path, len(foreign))
    ours = {
        name.removeprefix(naming.prefix) if name.startswith(naming.prefix) else f"({name})": tensor
        for name, tensor in official.items()
        if name not in set(foreign)
    }
    _check_constants(module, ours, naming, path)
    load_strictly(module, ours, path, optional=naming.constants)


def save_official(module: nn.Module, path: str | Path) -> None:
    """Write a module's weights as one safetensors file under its official names."""
    save_safetensors(official_state(module), path)


def _naming(module: nn.Module) -> Naming:
    for kind, naming in NAMINGS.items():
        if isinstance(module, kind):
            return naming
    raise TypeError(f"{type(module).__name__} is no part of a Show-o model")


def _check_constants(
    module: nn.Module, tensors: dict[str, Tensor], naming: Naming, path: str | Path
) -> None:
    own = module.state_dict()
    for name in naming.constants:
        if name in tensors and not torch.equal(tensors[name].to(own[name]), own[name]):
            raise ValueError(f"{path}: {name} differs from its definition; the codes would differ")
