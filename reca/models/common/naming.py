"""Official checkpoints: maps between official and our names, strict loading, saving under official names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reca.models.checkpoint_io import Pin, load_checkpoint, load_strictly, save_safetensors

# keys under which official pickles may store their tensors
_WRAPPERS = ("state_dict", "model", "module")
_SHOWN = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Naming:
    """The mapping between an official file and a module: official name = `prefix` + our name.

    `own` is the prefix of the official names that belong to the module, `foreign` a regular expression of exceptions;
    other names are skipped and reported. `constants` are recomputed, `tied` weights (name -> the weight that it
    equals) are stored once: both may be absent from a file, but must not differ.
    """

    prefix: str = ""
    own: tuple[str, ...] = ("",)
    foreign: str | None = None
    constants: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    # ---- names -----------------------------------------------------------------------------------
    def official(self, module: nn.Module) -> dict[str, str]:
        """The official name for one of ours."""
        return {name: self.prefix + name for name in module.state_dict()}

    def outward(self, official: str, tensor: Tensor) -> Tensor:
        """Our tensor converted to the shape in the official file."""
        return tensor

    def inward(self, official: str, tensor: Tensor) -> Tensor:
        """A tensor of an official file converted to our shape."""
        return tensor

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """The state of a module under official names; tensors are shared, not copied."""
        names = self.official(module)
        return {names[k]: self.outward(names[k], v) for k, v in module.state_dict().items()}

    # ---- files -----------------------------------------------------------------------------------
    def load(self, module: nn.Module, official: Mapping[str, Tensor], where: str | Path) -> None:
        """Copy official tensors into a module, strictly, casting them to its dtypes.

        ValueError names the file `where` and the names that are missing, unexpected, of another shape, or constants or
        tied weights that differ; nothing is copied then.
        """
        own = module.state_dict()
        ours = {official: name for name, official in self.official(module).items()}
        tensors = {}
        for name, tensor in self._belonging(official, where).items():
            stranger = (
                f"({name})" if name in own else name
            )  # our names are not accepted in place of official ones
            tensors[ours.get(name, stranger)] = self.inward(name, tensor)
        for name in self.constants:
            if name in tensors and not torch.equal(tensors[name].to(own[name]), own[name]):
                raise ValueError(
                    f"{where}: {name} differs from its definition; the codes would differ"
                )
        for name, source in self.tied.items():
            if name in tensors and (
                source not in tensors or not torch.equal(tensors[name], tensors[source])
            ):
                raise ValueError(f"{where}: {name} differs from {source}; the model ties the two")
            tensors.pop(name, None)
        load_strictly(module, tensors, where, optional=(*self.constants, *self.tied))

    def load_file(
        self,
        module: nn.Module,
        path: str | Path,
        *,
        sha256: str | None = None,
        allow_unpinned: bool = False,
    ) -> None:
        """Load an official (or our own) checkpoint file or folder; see `load` and `load_checkpoint`."""
        self.load(module, read(path, sha256, allow_unpinned), path)

    def save(self, module: nn.Module, path: str | Path) -> None:
        """Write a module as one safetensors file under its official names."""
        state = self.state(module)
        copies = {name: state[name].clone() for name in self.tied}  # tied tensors are stored once
        save_safetensors(state | copies, path)

    def _belonging(self, official: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
        found = {
            name: tensor
            for name, tensor in official.items()
            if name.startswith(self.own)
            and not (self.foreign is not None and re.search(self.foreign, name))
        }
        if left := sorted(official.keys() - found.keys()):
            shown = ", ".join(left[:_SHOWN])
            _log.warning("%s: %d tensors are skipped: %s", where, len(left), shown)
        return found


def read(
    path: str | Path, sha256: Pin | None = None, allow_unpinned: bool = False
) -> dict[str, Tensor]:
    """The tensors of a checkpoint file or folder, or of a pickle that wraps them; see `load_checkpoint`."""
    return load_checkpoint(path, sha256, allow_unpinned=allow_unpinned, wrappers=_WRAPPERS)


# ---- KL autoencoders -----------------------------------------------------------------------------
# diffusers' names -> those of the official files
_VAE = (
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block."),
    (r"\.(down|up)_blocks\.(\d+)\.attentions\.", r".\1.\2.attn."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".\1.\2.\3sample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
_VAE_ATTENTION = re.compile(r"\.attn.*\.(q|k|v|proj_out)\.weight$")


@dataclass(frozen=True)
class VaeNaming(Naming):
    """Latent Diffusion's names for a VAE stored under diffusers' names.

    Attention weights are 1 x 1 convolutions there, and the decoder's levels are counted from the other end.
    """

    own: tuple[str, ...] = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

    def official(self, module: nn.Module) -> dict[str, str]:
        """The official name for diffusers' name."""
        decoder: Any = module.get_submodule("decoder")
        levels = len(decoder.up_blocks)
        return {name: _official_vae_name(name, levels) for name in module.state_dict()}

    def outward(self, official: str, tensor: Tensor) -> Tensor:
        """[O, I] of an attention weight as [O, I, 1, 1]."""
        return tensor[..., None, None] if _VAE_ATTENTION.search(official) else tensor

    def inward(self, official: str, tensor: Tensor) -> Tensor:
        """[O, I, 1, 1] of an attention weight as [O, I]."""
        is_convolution = tensor.shape[2:] == (1, 1)
        return tensor[..., 0, 0] if is_convolution and _VAE_ATTENTION.search(official) else tensor


def _official_vae_name(name: str, levels: int) -> str:
    for pattern, official in _VAE:
        name = re.sub(pattern, official, name)
    if match := re.match(r"decoder\.up\.(\d+)\.", name):
        name = f"decoder.up.{levels - 1 - int(match[1])}.{name[match.end() :]}"
    return name


VAE = VaeNaming()
"""The naming of the KL autoencoders of Harmon and BAGEL."""
