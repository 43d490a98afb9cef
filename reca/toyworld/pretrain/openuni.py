"""OpenUni's laptop base model: its two frozen parts, the autoencoder and the ViT, and the model folder.

The autoencoder is the DC-AE class, trained on the world's images with noise on its latents, whose channels are
regularised to mean 0 and standard deviation 1. The ViT, followed by its projector, is InternVL's, trained to match
dense captions with SigLIP's loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reca.core.rng import generator
from reca.models.checkpoint_io import load_checkpoint, load_strictly, save_safetensors
from reca.models.common.batching import padded
from reca.models.common.tokenizer import read_tokenizer
from reca.models.openuni import layout
from reca.models.openuni.config import OpenUniConfig, parse
from reca.models.openuni.encoders import build_vae, vit_input
from reca.models.openuni.model import OpenUniModel
from reca.models.openuni.network import OpenUni
from reca.models.openuni.text import KEEP, MARKS
from reca.models.openuni.weights import HUB
from reca.models.registry import build_model
from reca.toyworld.pretrain.binding import first_word, values_in
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.matching import Matcher, caption_ids
from reca.toyworld.pretrain.pictures import read_world
from reca.toyworld.pretrain.words import build_chat_tokenizer, build_tokenizer
from reca.toyworld.text import dense_caption

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerFast

    from reca.config.schema import Fit

VAE_FILE, VISION_FILE = "vae.safetensors", "vision.safetensors"
VISION = ("model.vision_tower.", "model.multi_modal_projector.")
NOISE = 0.2  # on latents with standard deviation 1, to imitate small errors of the generator
MOMENTS = 0.01  # weight of the deviation of a channel's mean from 0 and standard deviation from 1
FRONT_END = f"generate an image : {KEEP}"  # words of the templates in reca/models/openuni/text.py


# ---- the autoencoder ---------------------------------------------------------------------------
def vae_loss(vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
    """Absolute and squared error of images [B, 3, H, W] decoded from noisy latents, plus the penalty on moments, []."""
    latents = vae.encode(pixels, return_dict=False)[0]
    error = vae.decode(latents + NOISE * noise, return_dict=False)[0] - pixels
    mean, variance = latents.mean(dim=(0, 2, 3)), latents.var(dim=(0, 2, 3))
    divergence = 0.5 * (mean.square() + variance - 1 - variance.clamp(min=1e-6).log())
    return error.abs().mean() + error.square().mean() + MOMENTS * divergence.mean()


def pretrain_vae(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the autoencoder of `network` on world `data`; writes `out/vae.safetensors`, returns the last loss.

    ValueError if the configured scale is not 1, as required by latents with standard deviation 1.
    """
    config, _ = parse(network)
    if config.vae.scaling_factor != 1:
        raise ValueError(
            f"network.vae.scaling_factor is {config.vae.scaling_factor}; latents are standardised here, set it to 1"
        )
    pictures = read_world(data)
    vae = seeded(lambda: build_vae(config.vae), seed, "vae")

    def loss(indices: Sequence[int]) -> Tensor:
        drawn = generator(seed, "latents", *indices)
        noise = torch.randn(len(indices), *config.latent_shape, generator=drawn)
        return vae_loss(vae, pictures.pixels[list(indices)], noise)

    size = len(pictures.scenes)
    found = fit(vae, loss, recipe, size=size, seed=seed, work_dir=work, data=pictures.fingerprint)
    HUB.save(vae, out / VAE_FILE)
    return found


# ---- the vision tower --------------------------------------------------------------------------
class Vision(nn.Module):
    """InternVL's understanding encoder: the ViT, pixel shuffle and projector of an OpenUni model that is discarded."""

    def __init__(self, config: OpenUniConfig) -> None:
        super().__init__()
        whole = OpenUni(config)
        self.model = nn.Module()
        self.model.vision_tower = whole.lmm.model.vision_tower
        self.model.multi_modal_projector = whole.lmm.model.multi_modal_projector
        self._whole = [whole]  # in a list, so that its other weights are not registered here
        self.requires_grad_(True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Understanding embeddings [B, N, H] of ViT inputs [B, 3, S, S]."""
        return self._whole[0].read(pixels)


def pretrain_vision(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train ViT and projector of `network` on dense captions; writes `out/vision.safetensors`, returns the last
    loss.
    """
    (config, _), pictures = parse(network), read_world(data)
    words = build_tokenizer([])  # only captions are needed: this text tower is discarded
    ids = caption_ids(words, [dense_caption(scene) for scene in pictures.scenes])
    matcher = seeded(
        lambda: Matcher(
            Vision(config),
            lambda tower, pixels: tower(pixels),
            width=config.llm.hidden_size,
            text_width=config.vit.hidden_size,
            heads=config.vit.num_attention_heads,
            words=len(words),
            end=words.eos_token_id,
        ),
        seed,
        "vision",
    )
    pixels = vit_input(pictures.pixels, config.vit.image_size)
    found = fit(
        matcher,
        lambda indices: matcher(pixels[list(indices)], ids[list(indices)]),
        recipe,
        size=len(pictures.scenes),
        seed=seed,
        work_dir=work,
        data=pictures.fingerprint,
    )
    assert isinstance(matcher, Matcher)
    save_safetensors(matcher.tower.state_dict(), out / VISION_FILE)
    return found


PARTS = {"vae": pretrain_vae, "vision": pretrain_vision}


# ---- words and pictures ---------------------------------------------------------------------------
def attention_values(
    model: OpenUniModel, images: Sequence[Image], texts: Sequence[str]
) -> tuple[list[Tensor], list[Tensor], int]:
    """See `binding.Values`."""
    text, image = model.text, model.config.special.image
    shown = text.reconstruction()
    read = model.encode(images, "read")["understanding"]
    seen = _values(model.network, [shown] * len(texts), read)
    tokens = torch.tensor([index for index, token in enumerate(shown) if token == image])
    told = [text.caption(caption) for caption in texts]
    first = first_word(told[0], text.ids([texts[0]])[0])
    return [v[:, tokens] for v in seen], _values(model.network, told), first


def _values(
    network: OpenUni, rows: Sequence[Sequence[int]], read: Tensor | None = None
) -> list[Tensor]:
    """The values [B, T, D] of every layer of the language model, of prompts with their images."""
    ids, mask = padded(rows, network.config.special.end)
    embedded = network.embed(ids, read)
    return values_in(
        network.language.layers,
        lambda: network.hidden(embedded, mask, layout.positions(mask)),
    )


# ---- together ----------------------------------------------------------------------------------
def tokenizer_of(prompts: Sequence[str], config: OpenUniConfig) -> PreTrainedTokenizerFast:
    """The world's words, Qwen's chat markers and InternVL's image markers; ValueError if the network's ids differ."""
    words = build_chat_tokenizer([*prompts, FRONT_END])
    images = [mark for name, mark in MARKS.items() if name.startswith("image")]
    words.add_special_tokens({"additional_special_tokens": images})
    wanted = {name: words.convert_tokens_to_ids(mark) for name, mark in MARKS.items()}
    found = {name: getattr(config.special, name) for name in MARKS}
    if wanted != found or len(words) != config.llm.vocab_size:
        raise ValueError(
            f"network.special is {found} and llm.vocab_size {config.llm.vocab_size}, but the world's vocabulary "
            f"requires {wanted} and {len(words)}; change them"
        )
    return words


def assemble(
    network: Mapping[str, Any],
    *,
    prompts: Sequence[str],
    seed: int,
    parts: Mapping[str, Path],
    out: Path,
) -> None:
    """Write a model folder with the trained autoencoder and ViT and an untrained language model and generator."""
    model = seeded(lambda: build_model("openuni", network), seed, "network")
    assert isinstance(model, OpenUniModel)
    words = tokenizer_of(prompts, model.config)
    HUB.load_file(model.frozen.vae, parts["vae"] / VAE_FILE)
    own = model.network.lmm.state_dict()
    rest = {name: tensor for name, tensor in own.items() if not name.startswith(VISION)}
    trained = load_checkpoint(parts["vision"] / VISION_FILE)
    load_strictly(model.network.lmm, trained | rest, parts["vision"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        words.save_pretrained(folder)
        model.set_tokenizer(read_tokenizer(Path(folder)))
    model.save(out)
