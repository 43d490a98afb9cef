"""Conversion of the official detector's weights (OpenMMLab) to transformers: a table of names and one permutation.

The mapping is described in reference/benchmarks.md 2. It is exact by construction (a test runs both forms of patch
merging), but was not tested with the released file, which has to be downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reca.evaluation.detectors.checkpoint import demand_labels
from reca.evaluation.detectors.coco import ALIASES
from reca.models.checkpoint_io import (
    Manifest,
    check_manifest,
    load_foreign_beside,
    load_strictly,
    manifest_of,
)

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

_ENCODER = "model.pixel_level_module.encoder"
_SWIN = f"{_ENCODER}.swin"
_PIXEL = "model.pixel_level_module.decoder"
_TRANSFORMER = "model.transformer_module"

# mmdet name -> transformers name, tried in order; \1 and \2 are indices
_NAMES: tuple[tuple[str, str], ...] = (
    (r"backbone\.patch_embed\.projection\.", rf"{_SWIN}.embeddings.patch_embeddings.projection."),
    (r"backbone\.patch_embed\.norm\.", rf"{_SWIN}.embeddings.norm."),
    (r"backbone\.stages\.(\d+)\.downsample\.", rf"{_SWIN}.encoder.layers.\1.downsample."),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.proj\.",
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.attention.o_proj.",
    ),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table",
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.attention.relative_position_bias.relative_position_bias_table",
    ),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.",
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.attention.",
    ),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm1\.",
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.layernorm_before.",
    ),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.norm2\.",
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.layernorm_after.",
    ),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.",
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.mlp.fc1.",
    ),
    (
        r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.",
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.mlp.fc2.",
    ),
    (r"backbone\.norm(\d+)\.", rf"{_ENCODER}.hidden_states_norms.stage<\1+1>."),
    (
        r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.conv\.",
        rf"{_PIXEL}.input_projections.\1.0.",
    ),
    (
        r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.gn\.",
        rf"{_PIXEL}.input_projections.\1.1.",
    ),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv\.", rf"{_PIXEL}.adapter_1.0."),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn\.", rf"{_PIXEL}.adapter_1.1."),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv\.", rf"{_PIXEL}.layer_1.0."),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn\.", rf"{_PIXEL}.layer_1.1."),
    (r"panoptic_head\.pixel_decoder\.mask_feature\.", rf"{_PIXEL}.mask_projection."),
    (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", rf"{_PIXEL}.level_embed"),
    (
        r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.attentions\.0\.",
        rf"{_PIXEL}.encoder.layers.\1.self_attn.",
    ),
    (
        r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.0\.",
        rf"{_PIXEL}.encoder.layers.\1.self_attn_layer_norm.",
    ),
    (
        r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.norms\.1\.",
        rf"{_PIXEL}.encoder.layers.\1.final_layer_norm.",
    ),
    (
        r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.",
        rf"{_PIXEL}.encoder.layers.\1.fc1.",
    ),
    (
        r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.ffns\.0\.layers\.1\.",
        rf"{_PIXEL}.encoder.layers.\1.fc2.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.0\.attn\.",
        rf"{_TRANSFORMER}.decoder.layers.\1.cross_attn.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.1\.attn\.",
        rf"{_TRANSFORMER}.decoder.layers.\1.self_attn.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.0\.",
        rf"{_TRANSFORMER}.decoder.layers.\1.cross_attn_layer_norm.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.1\.",
        rf"{_TRANSFORMER}.decoder.layers.\1.self_attn_layer_norm.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.norms\.2\.",
        rf"{_TRANSFORMER}.decoder.layers.\1.final_layer_norm.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.ffns\.0\.layers\.0\.0\.",
        rf"{_TRANSFORMER}.decoder.layers.\1.fc1.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.ffns\.0\.layers\.1\.",
        rf"{_TRANSFORMER}.decoder.layers.\1.fc2.",
    ),
    (
        r"panoptic_head\.transformer_decoder\.post_norm\.",
        rf"{_TRANSFORMER}.decoder.layernorm.",
    ),
    (r"panoptic_head\.query_embed\.", rf"{_TRANSFORMER}.queries_embedder."),
    (r"panoptic_head\.query_feat\.", rf"{_TRANSFORMER}.queries_features."),
    (r"panoptic_head\.level_embed\.", rf"{_TRANSFORMER}.level_embed."),
    (r"panoptic_head\.cls_embed\.", "class_predictor."),
    (
        r"panoptic_head\.mask_embed\.0\.",
        rf"{_TRANSFORMER}.decoder.mask_predictor.mask_embedder.0.0.",
    ),
    (
        r"panoptic_head\.mask_embed\.2\.",
        rf"{_TRANSFORMER}.decoder.mask_predictor.mask_embedder.1.0.",
    ),
    (
        r"panoptic_head\.mask_embed\.4\.",
        rf"{_TRANSFORMER}.decoder.mask_predictor.mask_embedder.2.0.",
    ),
)
_COMPILED = tuple((re.compile(pattern), name) for pattern, name in _NAMES)
_NEXT = re.compile(r"<(\d+)\+1>")
_OWN = ("criterion.empty_weight", f"{_SWIN}.layernorm.weight", f"{_SWIN}.layernorm.bias")  # unused
_LEFT_OUT = (
    "relative_position_index",
    "loss_cls",
    "num_batches_tracked",
)  # recomputed or training only


_REMEDY = "this is not the official Swin-S Mask2Former; fetch source mask2former-swin-small-coco-mmdet again"


def _used(name: str) -> bool:
    return not any(part in name for part in _LEFT_OUT)


def convert(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official state dict under transformers' names; ValueError names an unknown tensor."""
    found: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if _used(name):
            found |= dict(_placed(name, tensor))
    return found


def expected(model: nn.Module) -> Manifest:
    """Names, shapes and dtypes of the official tensors of a network: exactly the input of `convert`."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, (shape, kind) in manifest_of(model.state_dict()).items():
        if name not in _OWN:
            official = official_name(name)
            is_packed = official.endswith(("qkv.weight", "qkv.bias")) or ".in_proj_" in official
            is_third = is_packed and "_proj." in name
            rows = (3 * shape[0], *shape[1:]) if is_third else shape
            found[official] = (rows, kind)
    return found


def official_name(name: str) -> str:
    """The official name of a transformers tensor, the inverse of `translate`; the packed one for q, k and v.

    ValueError for an unknown name.
    """
    packed = re.sub(r"attention\.[qkv]_proj\.", "attention.qkv.", name)
    packed = re.sub(r"(decoder\.layers\.\d+\.self_attn\.)[qkv]_proj\.", r"\1in_proj_", packed)
    for pattern, target in _NAMES:
        form = re.sub(r"<?\\+(\d)(\\\+1>)?", r"(\\d+)", re.escape(target))
        found = re.match(form, packed)
        if found:
            shift = 1 if "+1>" in target else 0
            numbers = iter(str(int(number) - shift) for number in found.groups())
            own = re.sub(r"\(\\d\+\)", lambda _, n=numbers: next(n), pattern).replace("\\.", ".")  # type: ignore[misc]
            return own + packed[found.end() :]
    raise ValueError(f"{name}: has no name in mmdet's Mask2Former")


def _placed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    target = translate(name)
    if ".w_msa.qkv." in name or (".attentions.1." in name and ".in_proj_" in name):
        yield from _split(target, tensor)
    elif ".downsample.reduction." in name:
        yield target, merged_order(tensor)
    elif ".downsample.norm." in name:
        yield target, merged_order(tensor[None])[0]
    else:
        yield target, tensor


def translate(name: str) -> str:
    """The transformers name of an official tensor; ValueError for an unknown one."""
    for pattern, replacement in _COMPILED:
        found = pattern.match(name)
        if found:
            target = pattern.sub(replacement, name, count=1)
            return _NEXT.sub(lambda m: str(int(m[1]) + 1), target)
    raise ValueError(f"{name}: not a tensor of mmdet's Mask2Former; is this the right file?")


def _split(target: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Split packed query, key and value rows into three projections."""
    prefix, kind = re.sub(r"(qkv\.|in_proj_)(weight|bias)$", "", target), target.rsplit("_", 1)[-1]
    suffix = kind.rsplit(".", 1)[-1]
    for letter, part in zip("qkv", tensor.chunk(3), strict=True):
        yield f"{prefix}{letter}_proj.{suffix}", part.clone()


def merged_order(weight: Tensor) -> Tensor:
    """Reorder the input columns of patch merging from unfold's (C, 4) to Swin's (4, C), patches column by column."""
    rows, columns = weight.shape
    by_patch = weight.reshape(rows, columns // 4, 4).transpose(1, 2)
    return by_patch[:, torch.tensor([0, 2, 1, 3])].reshape(rows, columns).contiguous()


def _classes(said: Any) -> Sequence[str] | None:
    """The class names in the metadata of an mmdet 2 or 3 checkpoint; None if there are none."""
    places = [said, said.get("dataset_meta")] if isinstance(said, dict) else []
    for place in (one for one in places if isinstance(one, dict)):
        for key in ("CLASSES", "classes"):
            if isinstance(place.get(key), list | tuple):
                return tuple(place[key])
    return None


def build() -> Mask2FormerForUniversalSegmentation:
    """The network of the official configuration: Swin-S, 100 queries, 80 classes."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    swin: dict[str, Any] = {
        "embed_dim": 96,
        "depths": [2, 2, 18, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    rest: dict[str, Any] = {"backbone_config": SwinConfig(**swin), "num_labels": 80}
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**rest))


def load(
    file: Path, sha256: str | None, names: Sequence[str]
) -> Mask2FormerForUniversalSegmentation:
    """The transformers network with the official weights; the sha256 of the file is verified first.

    ValueError if a tensor is missing or unexpected, or the file lists other classes than `names`.
    """
    model = build()
    tensors, said = load_foreign_beside(file, sha256, inside="state_dict", beside="meta")
    if (own := _classes(said)) is not None:
        demand_labels(file, own, names, ALIASES)
    official = {n: t for n, t in tensors.items() if _used(n)}
    check_manifest(file, manifest_of(official), expected(model), remedy=_REMEDY)
    load_strictly(model, convert(official), file, optional=_OWN)
    return model
