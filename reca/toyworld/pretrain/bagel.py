"""BAGEL's laptop base model: its two frozen parts, the autoencoder and the vision tower, and the model folder.

The autoencoder is FLUX's class on the world's images (squared error, a small KL term, latents scaled to unit variance).
The tower is BAGEL's NaViT, trained to match dense captions with SigLIP's pairwise sigmoid loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from reca.core.rng import seed_of
from reca.models.bagel.config import BagelConfig, parse
from reca.models.bagel.context import empty, extend, text_block, vit_block
from reca.models.bagel.encoders import FrozenVae
from reca.models.bagel.model import BagelModel
from reca.models.bagel.network import GEN
from reca.models.bagel.text import MARKS
from reca.models.bagel.vision import VisionTower, patchify, positions
from reca.models.bagel.weights import VAE, load_vae
from reca.models.checkpoint_io import load_checkpoint, load_strictly, save_safetensors
from reca.models.common.tokenizer import read_tokenizer
from reca.models.registry import build_model, load_model
from reca.toyworld.pretrain.fit import fit, seeded
from reca.toyworld.pretrain.matching import Matcher, caption_ids
from reca.toyworld.pretrain.pictures import read_world
from reca.toyworld.pretrain.words import build_tokenizer
from reca.toyworld.text import dense_caption

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerFast

    from reca.config.schema import Fit

VAE_FILE, TOWER_FILE = "ae.safetensors", "vit.safetensors"
KL = 1e-4  # weight of the mean KL per latent value, relative to the squared error per pixel value
VOCABULARY = ("embed_tokens.weight", "lm_head.weight")  # one row for every word


# ---- the autoencoder ---------------------------------------------------------------------------
def vae_loss(vae: nn.Module, pixels: Tensor, noise: Tensor) -> Tensor:
    """Absolute and squared error on pixels [B, 3, H, W] plus a small KL to the standard normal, []."""
    mean, log_variance = vae.get_submodule("encoder")(pixels).chunk(2, dim=1)
    drawn = mean + torch.exp(0.5 * log_variance) * noise
    error = vae.get_submodule("decoder")(drawn) - pixels
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return error.abs().mean() + error.square().mean() + KL * divergence.mean()


@torch.no_grad()
def to_unit_spread(vae: nn.Module, pixels: Tensor) -> None:
    """Divide each latent channel by its standard deviation over `pixels` [B, 3, H, W] and undo it in the decoder.

    Decoded images are unchanged, and `scale_factor` 1 and `shift_factor` 0 are then correct for any trained weights.
    """
    encoder, decoder = (vae.get_submodule(f"{name}coder") for name in ("en", "de"))
    mean, _ = encoder(pixels).chunk(2, dim=1)
    spread = mean.transpose(0, 1).flatten(1).std(dim=1)
    out, first = encoder.get_submodule("conv_out"), decoder.get_submodule("conv_in")
    assert isinstance(out, nn.Conv2d) and isinstance(first, nn.Conv2d)
    assert out.bias is not None
    channels = len(spread)
    out.weight[:channels] /= spread[:, None, None, None]
    out.bias[:channels] /= spread
    out.bias[channels:] -= 2 * spread.log()
    first.weight *= spread[None, :, None, None]


def pretrain_vae(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the autoencoder of `network` on world `data`; writes `out/ae.safetensors`, returns the last loss."""
    (config, _), pictures = parse(network), read_world(data)
    side = config.resolution // config.vae.downsample
    shape = (config.vae.z_channels, side, side)
    module = seeded(lambda: FrozenVae(config.vae), seed, "vae")
    assert isinstance(module, FrozenVae)
    vae = module.vae.requires_grad_(True)
    noise = torch.Generator().manual_seed(seed)

    def loss(indices: Sequence[int]) -> Tensor:
        # keyed by the samples, so that a resumed run samples the same noise
        noise.manual_seed(seed + 1_000_003 * indices[0] + indices[-1])
        drawn = torch.randn(len(indices), *shape, generator=noise)
        return vae_loss(vae, pictures.pixels[list(indices)], drawn)

    size = len(pictures.scenes)
    found = fit(vae, loss, recipe, size=size, seed=seed, work_dir=work, data=pictures.fingerprint)
    to_unit_spread(vae, pictures.pixels[:512])
    VAE.save(vae, out / VAE_FILE)
    return found


# ---- the vision tower --------------------------------------------------------------------------
def tower_states(patch: int, table: int) -> Callable[[VisionTower, Tensor], Tensor]:
    """A function that returns a tower's ViT states [B, P, D] for pixels [B, 3, H, W]."""

    def states(tower: VisionTower, pixels: Tensor) -> Tensor:
        grid = torch.tensor([[pixels.shape[2] // patch, pixels.shape[3] // patch]])
        patches = patchify(pixels, patch)
        ids, _ = positions(grid.expand(len(pixels), 2), patches.shape[1], table)
        return tower(patches, ids)

    return states


def pretrain_vision(
    network: Mapping[str, Any], recipe: Fit, data: Path, *, seed: int, work: Path, out: Path
) -> float:
    """Train the vision tower of `network` on dense captions; writes `out/vit.safetensors`, returns the last loss."""
    (config, _), pictures = parse(network), read_world(data)
    words = build_tokenizer([])  # only captions are needed: this text tower is discarded
    ids = caption_ids(words, [dense_caption(scene) for scene in pictures.scenes])
    vit, table = config.vit, config.vit_max_num_patch_per_side
    matcher = seeded(
        lambda: Matcher(
            VisionTower(vit),
            tower_states(vit.patch_size, table),
            width=vit.hidden_size,
            text_width=vit.hidden_size,
            heads=vit.num_attention_heads,
            words=len(words),
            end=words.eos_token_id,
        ),
        seed,
        "vision",
    )
    found = fit(
        matcher,
        lambda indices: matcher(pictures.pixels[list(indices)], ids[list(indices)]),
        recipe,
        size=len(pictures.scenes),
        seed=seed,
        work_dir=work,
        data=pictures.fingerprint,
    )
    assert isinstance(matcher, Matcher)
    save_safetensors(matcher.tower.state_dict(), out / TOWER_FILE)
    return found


PARTS = {"vae": pretrain_vae, "vision": pretrain_vision}


# ---- words and pictures ---------------------------------------------------------------------------
def attention_values(
    model: BagelModel, images: Sequence[Image], texts: Sequence[str]
) -> tuple[list[Tensor], list[Tensor], int]:
    """See `binding.Values`."""
    network = model.network
    features = model.encode(images, "read")
    pictures = vit_block(network, features["understanding"], features["grid"])
    seen, told = (
        extend(network, empty(network, len(texts)), [block]).kept
        for block in (pictures, text_block(network, model.text.ids(list(texts))))
    )
    tokens = slice(1, 1 + pictures.und.shape[1] - 2)  # between the marks of the image
    return [v.flatten(2)[:, tokens] for _, v in seen], [v.flatten(2) for _, v in told], 1


# ---- continuing from a complete model ---------------------------------------------------------------
def go_on(
    network: Mapping[str, Any], start: Path, *, words: Sequence[str], seed: int
) -> BagelModel:
    """Load the model folder `start` with configuration `network`, whose vocabulary may be extended by `words`.

    Known words are skipped. Embeddings and output rows of new words are sampled with the mean and standard deviation
    of the existing ones. ValueError if vocabulary and words disagree, or any other part of the network differs.
    """
    old, model = load_model(start), build_model("bagel", network)
    assert isinstance(old, BagelModel) and isinstance(model, BagelModel)
    tokenizer = old.text.tokenizer
    known, room = tokenizer.get_vocab(), model.config.llm.vocab_size - old.config.llm.vocab_size
    new = [word for word in words if word not in known]
    if len(new) != room:
        raise ValueError(
            f"network.llm.vocab_size is {model.config.llm.vocab_size}, but {start} has {len(known)} entries and "
            f"{len(new)} words are new ({', '.join(new)}); set it to {len(known) + len(new)}"
        )
    noise = torch.Generator().manual_seed(seed_of(seed, "init", "words"))
    state = {
        name: _longer(weight, room, noise) if name.endswith(VOCABULARY) else weight
        for name, weight in old.official_state().items()
    }
    load_strictly(model.network, state, start)
    model.frozen.vae.load_state_dict(old.frozen.vae.state_dict())
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in new])
    model.set_tokenizer(tokenizer)
    return model


def _longer(weight: Tensor, rows: int, noise: torch.Generator) -> Tensor:
    """`rows` more rows for an embedding [V, D], sampled at its mean and spread."""
    drawn = torch.randn(rows, weight.shape[1], generator=noise)
    return torch.cat([weight, weight.mean(0) + weight.std(0) * drawn])


# ---- assembly ----------------------------------------------------------------------------------
def tokenizer_of(prompts: Sequence[str], config: BagelConfig) -> PreTrainedTokenizerFast:
    """The world's words followed by the four markers; ValueError if the network's ids differ."""
    words = build_tokenizer(prompts)
    first = len(words)
    expected = {name: first + number for number, name in enumerate(MARKS)}
    found = {name: getattr(config.special, name) for name in MARKS}
    size = first + len(MARKS)
    if expected != found or size != config.llm.vocab_size:
        raise ValueError(
            f"network.special is {found} and llm.vocab_size {config.llm.vocab_size}, but the world's vocabulary "
            f"requires {expected} and {size}; change them"
        )
    words.add_special_tokens({"additional_special_tokens": list(MARKS.values())})
    return words


def assemble(
    network: Mapping[str, Any],
    *,
    prompts: Sequence[str],
    seed: int,
    parts: Mapping[str, Path],
    out: Path,
) -> None:
    """Write a model folder with the trained autoencoder and tower and an untrained decoder.

    The gen expert starts as a copy of the und expert, as with the official code's `copy_init_moe`.
    """
    model = seeded(lambda: build_model("bagel", network), seed, "language")
    assert isinstance(model, BagelModel)
    words = tokenizer_of(prompts, model.config)
    load_vae(model.frozen.vae, parts["vae"] / VAE_FILE)
    tower = model.network.vit_model
    load_strictly(tower, load_checkpoint(parts["vision"] / TOWER_FILE), parts["vision"])
    copy_to_gen(model)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        words.save_pretrained(folder)
        model.set_tokenizer(read_tokenizer(Path(folder)))
    model.save(out)


@torch.no_grad()
def copy_to_gen(model: BagelModel) -> None:
    """Copy every weight of the und expert to the gen expert."""
    own = dict(model.network.named_parameters())
    for name, weight in own.items():
        if GEN in name:
            weight.copy_(own[name.replace(GEN, "")])
