"""Janus-Pro's checkpoints: one file with the trained network, SigLIP and the VQ model, in one of two layouts.

The official layout has the names of the released code, in which SigLIP's queries, keys and values are one matrix; the
other has those of transformers. Both can be loaded; `checkpoint_layout` selects the one to save. Source:
docs/reference/janus.md a and f.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reca.core.finite import check_weights
from reca.models.checkpoint_io import check_manifest, manifest_of
from reca.models.common.naming import Naming
from reca.models.janus.config import JanusConfig, Layout

_TOWER, _POOL = "vision_model.vision_tower.", "vision_model.vision_tower.attn_pool."
_COUNTER = "gen_vision_model.quantize.codebook_used"
_COUNTED = 65536  # as released, whatever the size of the codebook
# our names -> official ones
_OFFICIAL = (
    (r"^network\.language_model\.", "language_model."),
    (r"^network\.aligner\.fc1\.", "aligner.layers.0."),
    (r"^network\.aligner\.hidden_layers\.0\.", "aligner.layers.2."),
    (r"^network\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^network\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^network\.generation_embeddings\.", "gen_embed."),
    (r"^network\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^network\.generation_head\.", "gen_head."),
    (r"^frozen\.vision_model\.embeddings\.patch_embedding\.", f"{_TOWER}patch_embed.proj."),
    (r"^frozen\.vision_model\.embeddings\.position_embedding\.weight$", f"{_TOWER}pos_embed"),
    (r"^frozen\.vision_model\.encoder\.layers\.", f"{_TOWER}blocks."),
    (r"^frozen\.vision_model\.post_layernorm\.", f"{_TOWER}norm."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (rf"^({_TOWER}.*)\.self_attn\.([qkv])_proj\.", r"\1.attn.\2."),
    (rf"^({_TOWER}.*)\.self_attn\.projection_layer\.", r"\1.attn.proj."),
    (r"^frozen\.vqmodel\.", "gen_vision_model."),
    (r"^(gen_vision_model\.\w+)\.(?:down|up)\.(\d+)\.block\.", r"\1.conv_blocks.\2.res."),
    (r"^(gen_vision_model\.\w+)\.(?:down|up)\.", r"\1.conv_blocks."),
    (r"^(gen_vision_model\.\w+)\.mid\.block_1\.", r"\1.mid.0."),
    (r"^(gen_vision_model\.\w+)\.mid\.attn_1\.", r"\1.mid.1."),
    (r"^(gen_vision_model\.\w+)\.mid\.block_2\.", r"\1.mid.2."),
)
# our names -> those of transformers
_TRANSFORMERS = (
    (r"^network\.language_model\.model\.", "model.language_model."),
    (r"^network\.language_model\.lm_head\.", "lm_head."),
    (r"^(?:network|frozen)\.", "model."),
)
_QKV = re.compile(rf"^({_TOWER}.*\.attn)\.qkv\.(weight|bias)$")


@dataclass(frozen=True)
class JanusNaming(Naming):
    """Names of a whole `JanusModel` in one layout; loading detects the layout of a file from its names.

    The official layout also contains SigLIP's pooling head and a counter of used codes, which the model does not use:
    they are kept in `JanusModel.unread` and saved again. A file contains all of them or, in transformers' layout, none.
    """

    layout: Layout = "official"

    def official(self, module: nn.Module) -> dict[str, str]:
        """Names in this layout by our names, with queries, keys and values still separate."""
        pairs = _OFFICIAL if self.layout == "official" else _TRANSFORMERS
        return {name: _renamed(name, pairs) for name in module.state_dict()}

    def outward(self, official: str, tensor: Tensor) -> Tensor:
        """Convert position embeddings [P, W] to the official [1, P, W]."""
        return tensor.unsqueeze(0) if official == f"{_TOWER}pos_embed" else tensor

    def inward(self, official: str, tensor: Tensor) -> Tensor:
        """Convert official position embeddings [1, P, W] to [P, W]."""
        return tensor.squeeze(0) if official == f"{_TOWER}pos_embed" else tensor

    def state(self, module: Any) -> dict[str, Tensor]:
        """All tensors of a model under the names of this layout, unused ones included."""
        return self._read_content(module) | (module.unread if self.layout == "official" else {})

    def load(self, module: Any, official: Mapping[str, Tensor], where: str | Path) -> None:
        """Load a checkpoint of either layout strictly; ValueError names the file and every mismatch."""
        is_official = not any(name.startswith("model.") for name in official)
        unread = {n: t for n, t in official.items() if is_official and is_unread(n)}
        if unread:
            expected = {name: (shape, "float32") for name, shape in unread_shapes(module.config)}
            check_manifest(where, manifest_of(unread), expected)
        rest = {name: tensor for name, tensor in official.items() if name not in unread}
        NAMING["official" if is_official else "transformers"]._fill(module, rest, where)
        module.unread = unread

    def _read_content(self, module: Any) -> dict[str, Tensor]:
        """The tensors of our modules under the names of this layout."""
        state = super().state(module)
        return _joined(state) if self.layout == "official" else state

    def _fill(self, module: Any, tensors: Mapping[str, Tensor], where: str | Path) -> None:
        """Load tensors of this layout; errors have the names of the file."""
        check_manifest(where, manifest_of(tensors), manifest_of(self._read_content(module)))
        check_weights(where, tensors.items())
        super().load(module, _parted(tensors), where)


NAMING: dict[Layout, JanusNaming] = {
    "official": JanusNaming(layout="official"),
    "transformers": JanusNaming(layout="transformers"),
}


def is_unread(official: str) -> bool:
    """Whether a tensor of the official layout is one that the model does not use."""
    return official.startswith(_POOL) or official == _COUNTER


def unread_shapes(config: JanusConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the unused tensors: SigLIP's pooling head and the counter of used codes."""
    width, inner = (
        config.vision.hidden_size,
        int(config.vision.hidden_size * config.vision.mlp_ratio),
    )
    layers = {
        "q": (width, width),
        "kv": (2 * width, width),
        "proj": (width, width),
        "norm": (width,),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    shapes: list[tuple[str, tuple[int, ...]]] = [(f"{_POOL}latent", (1, 1, width))]
    for name, shape in layers.items():
        shapes += [(f"{_POOL}{name}.weight", shape), (f"{_POOL}{name}.bias", shape[:1])]
    return [*shapes, (_COUNTER, (_COUNTED,))]


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, official in pairs:
        name = re.sub(pattern, official, name)
    return name


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate SigLIP's queries, keys and values, [W, W] each, to one tensor [3 W, W] per layer."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := re.match(rf"^({_TOWER}.*\.attn)\.q\.(weight|bias)$", name):
            parts = [state[f"{match[1]}.{part}.{match[2]}"] for part in "qkv"]
            joined[f"{match[1]}.qkv.{match[2]}"] = torch.cat(parts)
        elif not re.match(rf"^{_TOWER}.*\.attn\.[kv]\.", name):
            joined[name] = tensor
    return joined


def _parted(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split SigLIP's [3 W, W] tensors; the inverse of `_joined`."""
    parted: dict[str, Tensor] = {}
    for name, tensor in official.items():
        match = _QKV.match(name)
        if match and len(tensor) % 3 == 0:
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                parted[f"{match[1]}.{part}.{match[2]}"] = value
        else:
            parted[name] = tensor
    return parted
