"""OpenUni's weight files: the released subsets, InternVL3 under any of its names, SANA and the DC-AE from their hubs.

Released files hold what was trained: stage 1 the queries, connector and projector, stage 2 and RecA SANA as well.
Source: docs/reference/openuni.md a2 and f.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from reca.core.finite import check_weights
from reca.models.checkpoint_io import check_manifest, load_strictly, manifest_of
from reca.models.common.naming import Naming

GENERATOR = "transformer."
STAGE_1 = ("meta_queries", "connector.", "projector.")
TRAINED = (*STAGE_1, GENERATOR)
LMM, VAE = "lmm.", "vae."

_log = logging.getLogger(__name__)


def is_trained(name: str) -> bool:
    """Whether RecA trains the network's weight of this name (openuni.md e)."""
    return name.startswith(TRAINED)


def is_generator(names: Mapping[str, Tensor]) -> bool:
    """Whether a file is SANA's own, from its hub: where stage 1 starts."""
    return "patch_embed.proj.weight" in names


def holds_generator(names: Mapping[str, Tensor]) -> bool:
    """Whether a released file is of stage 2 or RecA."""
    return any(name.startswith(GENERATOR) for name in names)


# ---- what is trained ------------------------------------------------------------------------------
class ReleasedNaming(Naming):
    """A released file: a declared subset of the network under our names."""

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """All that is trained (stage 2)."""
        return {name: t for name, t in module.state_dict().items() if is_trained(name)}

    def load(self, module: nn.Module, official: Mapping[str, Tensor], where: str | Path) -> None:
        """Copy stage 1 or stage 2, whichever the file is; ValueError names missing and unexpected weights.

        InternVL3's and the autoencoder's weights, which no release should hold, are left out and reported.
        """
        given = self._belonging(official, where)
        stage = TRAINED if holds_generator(given) else STAGE_1
        own = {n: t for n, t in module.state_dict().items() if n.startswith(stage)}
        remedy = "a released file is of stage 1 (queries, connector, projector) or also has SANA"
        check_manifest(where, manifest_of(given), manifest_of(own), remedy=remedy)
        check_weights(where, given.items())
        if stage is STAGE_1:
            _log.warning("%s: is of stage 1; SANA stays as it is", where)
        module.load_state_dict(given, strict=False)


RELEASED = ReleasedNaming(foreign=r"^(lmm|vae)\.")


# ---- InternVL3 ------------------------------------------------------------------------------------
# official names -> transformers'
_NATIVE = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),  # of older transformers
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^vision_model\.", "model.vision_tower."),
    (r"(vision_tower\.embeddings\.)class_embedding$", r"\1cls_token"),
    (r"(vision_tower\.embeddings\.)position_embedding$", r"\1position_embeddings"),
    (r"(vision_tower\.embeddings\.)patch_embedding\.", r"\1patch_embeddings.projection."),
    (r"\.encoder\.layers\.", ".encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
)
# transformers' -> official
_OFFICIAL = (
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^model\.multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^model\.multi_modal_projector\.linear_2\.", "mlp1.3."),
    (r"^model\.vision_tower\.", "vision_model."),
    (r"\.cls_token$", ".class_embedding"),
    (r"\.position_embeddings$", ".position_embedding"),
    (r"\.patch_embeddings\.projection\.", ".patch_embedding."),
    (r"\.encoder\.layer\.", ".encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".ls\1"),
)
_FUSED = re.compile(r"\.attn\.qkv\.")
_PART = re.compile(r"\.attention\.([qkv])_proj\.")


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, other in rules:
        name = re.sub(pattern, other, name)
    return name


def native(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight of InternVL3 (official names, with `lmm.` or without, or transformers') under transformers' names.

    Official files keep queries, keys and values of the ViT in one tensor, in this order of rows.
    """
    name = _renamed(name.removeprefix(LMM), _NATIVE)
    if not _FUSED.search(name):
        yield name, tensor
        return
    for part, rows in zip("qkv", tensor.chunk(3), strict=True):
        yield _FUSED.sub(f".attention.{part}_proj.", name), rows


class ReaderNaming(Naming):
    """InternVL3, which transformers' class names differently than the official files."""

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """All weights under their official names; those of queries, keys and values are copies."""
        own, found = module.state_dict(), dict[str, Tensor]()
        for name, tensor in own.items():
            official = _renamed(name, _OFFICIAL)
            if match := _PART.search(official):
                if match[1] != "q":
                    continue
                parts = [own[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                official, tensor = _PART.sub(".attn.qkv.", official), torch.cat(parts)
            found[self.prefix + official] = tensor
        return found

    def load(self, module: nn.Module, official: Mapping[str, Tensor], where: str | Path) -> None:
        """Copy InternVL3's weights, strictly; ValueError names what is missing, unexpected or of another shape."""
        tensors = dict(pair for item in official.items() for pair in native(*item))
        load_strictly(module, tensors, where)


READER = ReaderNaming(prefix=LMM)
HUB = Naming()  # SANA and the autoencoder are released under diffusers' names
