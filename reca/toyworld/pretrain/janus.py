"""Janus-Pro's laptop base model: its VQ model and SigLIP tower, and a model folder with them and an untrained network.

The VQ model is LlamaGen's class, trained on the world's images without perceptual or adversarial terms; the tower is
trained to match dense captions with SigLIP's loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reca.models.checkpoint_io import load_safetensors, load_strictly, save_safetensors
from reca.models.common.batching import padded
from reca.models.janus.config import JanusConfig, parse
from reca.models.janus.encoders import vision_tower, vq_model
from reca.models.janus.layout import IMAGE, expanded
from reca.models.janus.model import JanusModel
from reca.models.registry import build_model
from reca.toyworld.pretrain.binding import first_word, values_in
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.matching import Matcher, caption_ids
from reca.toyworld.pretrain.pictures import read_world
from reca.toyworld.pretrain.words import build_janus_tokenizer, build_tokenizer
from reca.toyworld.text import dense_caption

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.config.schema import Fit

VQ_FILE, TOWER_FILE = "vq.safetensors", "siglip.safetensors"
COMMITMENT, ENTROPY = 0.25, 0.05
_SHARPNESS = 20.0  # of the soft assignment to codes in the entropy term


# ---- the VQ model --------------------------------------------------------------------------------
def vq_loss(vq: Any, pixels: Tensor) -> Tensor:
    """L1 + L2 to pixels [B, 3, H, W], codebook and commitment losses, and the entropy of the assignment, [].

    Latents and codebook are normalised, like in Janus-Pro's code lookup (janus.md g1); gradients pass straight through
    the quantiser. The entropy term makes each assignment certain and the use of codes uniform.
    """
    latents = vq.quant_conv(vq.encoder(pixels))  # [B, C, h, w]
    directions = F.normalize(latents.flatten(2).transpose(1, 2), dim=-1)  # [B, N, C]
    book = F.normalize(vq.quantize.embedding.weight, dim=-1)
    scores = directions @ book.T
    chosen = book[scores.argmax(dim=-1)]
    distance = F.mse_loss(chosen, directions.detach())
    distance = distance + COMMITMENT * F.mse_loss(directions, chosen.detach())
    passed = directions + (chosen - directions).detach()
    decoded = vq.decoder(vq.post_quant_conv(passed.transpose(1, 2).unflatten(2, latents.shape[2:])))
    error = decoded - pixels
    return error.abs().mean() + error.square().mean() + distance + ENTROPY * _entropy(scores)


def _entropy(scores: Tensor) -> Tensor:
    """Mean entropy of the soft assignments of scores [B, N, K] minus the entropy of their mean, in nats, []."""
    logs = (_SHARPNESS * scores).log_softmax(dim=-1)
    mean = logs.exp().mean(dim=(0, 1))
    certain = -(logs.exp() * logs).sum(dim=-1).mean()
    return certain + (mean * mean.clamp(min=1e-9).log()).sum()


def pretrain_vq(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the VQ model of `network` on world `data`; writes `out/vq.safetensors`, returns the last loss."""
    (config, _), pictures = parse(network), read_world(data)
    vq = seeded(lambda: vq_model(config), seed, "vq")
    loss = fit(
        vq,
        lambda indices: vq_loss(vq, pictures.pixels[list(indices)]),
        recipe,
        size=len(pictures.scenes),
        seed=seed,
        work_dir=work,
        data=pictures.fingerprint,
    )
    save_safetensors(vq.state_dict(), out / VQ_FILE)
    return loss


# ---- the SigLIP tower ----------------------------------------------------------------------------
def build_matcher(config: JanusConfig, words: int, end: int) -> Matcher:
    """The untrained SigLIP tower and a small text tower over `words` ids; `end` ends a caption."""
    vision = config.vision
    return Matcher(
        vision_tower(config),
        lambda tower, pixels: tower(pixel_values=pixels).last_hidden_state,
        width=vision.hidden_size,
        text_width=vision.hidden_size,
        heads=vision.num_attention_heads,
        words=words,
        end=end,
    )


def pretrain_vision(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the tower of `network` on dense captions; writes `out/siglip.safetensors`, returns the last loss."""
    (config, _), pictures = parse(network), read_world(data)
    words = build_tokenizer([])  # only captions are needed: this text tower is discarded
    ids = caption_ids(words, [dense_caption(scene) for scene in pictures.scenes])
    matcher = seeded(lambda: build_matcher(config, len(words), words.eos_token_id), seed, "vision")
    assert isinstance(matcher, Matcher)
    loss = fit(
        matcher,
        lambda indices: matcher(pictures.pixels[list(indices)], ids[list(indices)]),
        recipe,
        size=len(pictures.scenes),
        seed=seed,
        work_dir=work,
        data=pictures.fingerprint,
    )
    save_safetensors(matcher.tower.state_dict(), out / TOWER_FILE)
    return loss


PARTS = {"vq": pretrain_vq, "vision": pretrain_vision}


# ---- the folder ----------------------------------------------------------------------------------
def assemble(
    network: Mapping[str, Any],
    *,
    prompts: Sequence[str],
    seed: int,
    parts: Mapping[str, Path],
    out: Path,
) -> None:
    """Write a model folder with the trained frozen parts and an untrained network.

    `parts` are the folders of the stages `vq` and `vision`. ValueError if the closed vocabulary does not fit.
    """
    words = build_janus_tokenizer(prompts)
    model = seeded(lambda: build_model("janus", network), seed, "network")
    assert isinstance(model, JanusModel)
    if (size := model.config.llm["vocab_size"]) != len(words):
        raise ValueError(
            f"network.llm.vocab_size is {size}, but the world's vocabulary requires {len(words)}; change it"
        )
    for module, part, file in (
        (model.frozen.vqmodel, "vq", VQ_FILE),
        (model.frozen.vision_model, "vision", TOWER_FILE),
    ):
        load_strictly(module, load_safetensors(parts[part] / file), parts[part] / file)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        words.save_pretrained(folder)
        model.read_tokenizer(folder)
    model.save(out)


# ---- values of words and pictures ------------------------------------------------------------------
def attention_values(
    model: JanusModel, images: Sequence[Image], texts: Sequence[str]
) -> tuple[list[Tensor], list[Tensor], int]:
    """See `binding.Values`."""
    shown = expanded(model.text.reconstruction(""), model.config.image_length)
    read = model.encode(images, "read")["understanding"]
    seen = _values(model, [shown] * len(texts), read)
    patches = torch.tensor([index for index, token in enumerate(shown) if token == IMAGE])
    told = [model.text.caption(text) for text in texts]
    first = first_word(told[0], model.text.ids([texts[0]])[0])
    return [v[:, patches] for v in seen], _values(model, told), first


def _values(
    model: JanusModel, rows: Sequence[Sequence[int]], read: Tensor | None = None
) -> list[Tensor]:
    """The values [B, L, D] of every layer of the language model, of prompts with their images."""
    network = model.network
    ids, _ = padded(rows, model.text.special.pad)
    embedded = network.inputs(ids, read)
    return values_in(network.language_model.model.layers, lambda: network.hidden(embedded))
