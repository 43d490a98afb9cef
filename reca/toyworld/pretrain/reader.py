"""The laptop's vision encoder: a transformers CLIP trained to match images with dense captions.

Only the vision tower is kept. Images are CLIP-normalised, as in both uses of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from reca.models.showo.clip import MEAN, STD, ClipTower
from reca.models.showo.config import TowerConfig, parse
from reca.models.showo.weights import CLIP
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.matching import MAX_CAPTION, TEXT_LAYERS, caption_ids
from reca.toyworld.pretrain.pictures import read_world
from reca.toyworld.pretrain.words import build_tokenizer
from reca.toyworld.text import dense_caption

if TYPE_CHECKING:
    from reca.config.schema import Fit

FILE = "clip.safetensors"


def build_clip(vision: Mapping[str, Any], words: int, end: int) -> CLIPModel:
    """An untrained CLIP with the given vision tower and a small text tower over `words` ids; `end` ends
    a caption.
    """
    width = vision["hidden_size"]
    text = {
        "vocab_size": words + 1,  # one more for padding
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": vision["num_attention_heads"],
        "max_position_embeddings": MAX_CAPTION,
        "eos_token_id": end,
        "bos_token_id": end,
        "pad_token_id": words,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=dict(vision), projection_dim=width))


def reader_loss(clip: CLIPModel, pixels: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric contrastive loss of matching images [B, 3, S, S] and captions [B, T], []."""
    padding = clip.text_model.embeddings.token_embedding.num_embeddings - 1
    mask = torch.ne(ids, padding).long()
    return clip(input_ids=ids, pixel_values=pixels, attention_mask=mask, return_loss=True).loss


def clip_pixels(pixels: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1], normalised for CLIP."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((pixels + 1) / 2 - mean) / std


def vision_tower(clip: CLIPModel, vision: Mapping[str, Any]) -> ClipTower:
    """The vision tower of a CLIP with the sizes `vision`, as the class that Show-o uses."""
    tower = ClipTower(TowerConfig(**vision))
    tower.load_state_dict(clip.vision_model.state_dict())
    return tower


def pretrain_reader(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the CLIP tower of `network` on dense captions; writes `out/clip.safetensors`, returns the last loss."""
    (config, _), pictures = parse(network), read_world(data)
    words = build_tokenizer([])  # only captions are needed: this text tower is discarded
    ids = caption_ids(words, [dense_caption(scene) for scene in pictures.scenes])
    vision = config.clip_vision or {}
    clip = seeded(lambda: build_clip(vision, len(words), words.eos_token_id), seed, "reader")
    assert isinstance(clip, CLIPModel)
    pixels = clip_pixels(pictures.pixels)
    loss = fit(
        clip,
        lambda indices: reader_loss(clip, pixels[list(indices)], ids[list(indices)]),
        recipe,
        size=len(pictures.scenes),
        seed=seed,
        work_dir=work,
        data=pictures.fingerprint,
    )
    CLIP.save(vision_tower(clip, vision), out / FILE)
    return loss
