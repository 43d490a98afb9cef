"""Harmon's implementation of `reca.models.contract`: every operation forwards to another module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reca.models.common.family import FamilyModel, WeightFile
from reca.models.common.memory import language_profile
from reca.models.contract import DecayGroups, Features, Loss, MemoryProfile, Sampling, Use
from reca.models.harmon import batch as batches
from reca.models.harmon import weights
from reca.models.harmon.batch import Condition, Conversation, DiffusionNoise
from reca.models.harmon.config import QWEN2_5, HarmonConfig, HarmonOptions, parse
from reca.models.harmon.diffusion import SLICE
from reca.models.harmon.encoders import FrozenVae
from reca.models.harmon.network import Harmon, read_image
from reca.models.harmon.text import TextFrontEnd

if TYPE_CHECKING:
    from PIL.Image import Image

_UNUSED = "network.mar.class_emb.weight"  # never receives a gradient


def build(network: Mapping[str, Any]) -> HarmonModel:
    """Build an untrained Harmon from its `network` section; its tokenizer comes with `load` or `set_tokenizer`."""
    return HarmonModel(*parse(network))


class HarmonModel(FamilyModel):
    """Harmon: a masked autoencoder for understanding and generation, a language model and a diffusion head."""

    family = "harmon"
    longest_answer = 1024  # harmon.md c
    title = "Harmon"
    front_end = TextFrontEnd
    companion_files: ClassVar[dict[str, str]] = {"image_tokenizer": "kl16.ckpt"}

    def __init__(self, config: HarmonConfig, options: HarmonOptions | None = None) -> None:
        options = options or HarmonOptions()
        network = Harmon(
            config
        )  # first: what a seed means depends on the order of random initialisation
        super().__init__(
            config, options, network, FrozenVae(config, options.drawing, options.encode_batch)
        )

    # ---- frozen parts ------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Latents [B, m, n, C]: `target` for use `draw`, `latents` for `read`.

        With the option `frozen_condition`, use `draw` also returns `understanding` [B, L + S, H].
        """
        latents = self.frozen.encode(images, use)
        if use == "read":
            return {"latents": latents}
        if not self.options.frozen_condition:
            return {"target": latents}
        chunk = self.options.encode_batch
        read = [read_image(self.network, part) for part in latents.split(chunk)]
        return {"target": latents, "understanding": torch.cat(read)}

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of everything that affects `encode(..., use)`: the VAE, and the encoder if its embeddings are frozen."""
        if use == "read" or not self.options.frozen_condition:
            return self.frozen.fingerprint(use)
        reader = {
            name: tensor
            for name, tensor in self.network.state_dict().items()
            if name.startswith(("mar.", "proj_in."))
        }
        return self.frozen.fingerprint(use, reader)

    # ---- losses ------------------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions in the text-to-image template; with features, reconstruction prompts around the image."""
        if features is None:
            rows = [self.text.caption(text) for text in texts]
            return Condition(rows, self.text.unconditional())
        newline = self.options.leading_newline
        rows = [self.text.reconstruction(text, newline) for text in texts]
        dropped = self.text.unconditional(with_image=True)
        if self.options.frozen_condition:
            if "understanding" not in features:
                raise ValueError(
                    "options.frozen_condition needs cached understanding embeddings; build the cache with it"
                )
            return Condition(rows, dropped, understanding=features["understanding"])
        return Condition(rows, dropped, latents=features["target"])

    def unconditional(self, batch: int) -> Condition:
        """`Generate an image.` without an image, even if the condition has one (harmon.md d4, d5)."""
        ids = self.text.unconditional()
        return Condition([ids] * batch, ids)

    def sample_noise(self, batch: int, generator: torch.Generator) -> DiffusionNoise:
        """See `batch.sample_noise`."""
        return batches.sample_noise(self.config, batch, generator)

    def generation_loss(
        self, target: Features, condition: Condition, noise: DiffusionNoise
    ) -> Loss:
        """See `loss.generation_loss`."""
        from reca.models.harmon import loss

        return loss.generation_loss(self.network, self.options, target["target"], condition, noise)

    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns with labels on the answers, truncated to `max_text` tokens."""
        room = self.options.max_text
        coded = [self.text.conversation(one, with_image) for one in turns]
        return Conversation(
            [ids[:room] for ids, _ in coded], [labels[:room] for _, labels in coded]
        )

    def with_noise(self, conversation: Conversation, generator: torch.Generator) -> Conversation:
        """The conversation with the seed of the encoder's dropout."""
        return replace(conversation, dropout=batches.sample_dropout(self.config, generator))

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """See `loss.answer_loss`."""
        from reca.models.harmon import loss

        latents = None if features is None else features["latents"]
        return loss.answer_loss(self.network, self.options, conversation, latents)

    # ---- inference ---------------------------------------------------------------------------
    def generate(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """One image per row; options in `sampling.options` are those of `sampler.SamplerOptions`."""
        from reca.models.harmon import sampler

        return self.frozen.pictures(
            sampler.sample_latents(self.network, condition, unconditional, sampling, generators)
        )

    def default_sampling(self) -> Sampling:
        """The settings of all of the authors' scripts (harmon.md d4)."""
        return Sampling(guidance=3.0, steps=64)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError for an unknown option or invalid value of `SamplerOptions`."""
        from reca.models.harmon.sampler import SamplerOptions

        SamplerOptions.of(sampling)

    @torch.no_grad()
    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row, up to the first end."""
        from reca.models.common.decoding import answers
        from reca.models.harmon import sampler

        texts = [self.text.question(question, features is not None) for question in questions]
        latents = None if features is None else features["latents"]
        steps = sampler.answer(self.network, texts, latents, max_new_tokens)
        return answers(steps, self.text, len(questions))

    # ---- parameters and weights --------------------------------------------------------------
    def trainable_parameters(self) -> list[str]:
        """Everything but the VAE and MAR's unused class embedding, which never has a gradient (harmon.md g8)."""
        return [name for name in super().trainable_parameters() if name != _UNUSED]

    def decay_groups(self) -> DecayGroups:
        """No decay for vectors, biases and the entire diffusion head (harmon.md e)."""
        by_name = dict(self.named_parameters())
        names = self.trainable_parameters()

        def decays(name: str) -> bool:
            return by_name[name].dim() > 1 and not name.endswith(".bias") and "diffloss" not in name

        return DecayGroups(
            decay=tuple(name for name in names if decays(name)),
            no_decay=tuple(name for name in names if not decays(name)),
        )

    def memory_profile(self) -> MemoryProfile:
        """One RecA sequence: condition, 40 tokens of text, visible latents at the mean mask rate (0.867), buffers.

        MAR's blocks count as language model layers that store as many values, and the head runs on the masked
        positions, `repeats` times.
        """
        config, mar = self.config, self.config.mar
        seen = config.image_length
        visible = config.tokens * 133 // 1000
        tokens = seen + 40 + visible + mar.buffers
        width = config.llm_value("hidden_size")
        encoder = mar.encoder_depth * mar.encoder_width * (tokens - 40)
        decoder = mar.decoder_depth * mar.decoder_width * seen
        sizes = QWEN2_5 | config.llm
        return language_profile(
            sizes,
            tokens,
            more_layers=round((encoder + decoder) / (tokens * width)),
            head_rows=mar.repeats * (config.tokens - visible),
            head_layers=mar.head_depth,
            head_width=mar.head_width,
            head_slice=SLICE,
        )

    def weight_files(self) -> list[WeightFile]:
        """Network and VAE; the Hub checkpoint contains both."""
        network, vae = self.network, self.frozen.vae
        return [
            WeightFile("weights", "model.safetensors", network, weights.NETWORK),
            WeightFile("image_tokenizer", "vae.safetensors", vae, weights.VAE, weights.INSIDE),
        ]
