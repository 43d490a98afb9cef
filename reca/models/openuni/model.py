"""OpenUni behind the contract of `reca.models.contract`: every operation forwards to the room that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reca.models.checkpoint_io import Pin
from reca.models.common.family import FamilyModel, WeightFile
from reca.models.common.memory import language_profile
from reca.models.common.naming import read
from reca.models.contract import DecayGroups, Features, Loss, MemoryProfile, Sampling, Use
from reca.models.openuni import weights
from reca.models.openuni.batch import Condition, Conversation, FlowNoise
from reca.models.openuni.config import OpenUniConfig, OpenUniOptions, parse
from reca.models.openuni.encoders import FrozenVae, Reader
from reca.models.openuni.network import OpenUni
from reca.models.openuni.text import TextFrontEnd

if TYPE_CHECKING:
    from PIL.Image import Image

    from reca.models.openuni.sampler import KeptConditions

PROMPT = 40  # tokens of a typical RecA prompt with its template (openuni.md b2)


def build(network: Mapping[str, Any]) -> OpenUniModel:
    """Build an untrained OpenUni from its `network` section; its tokenizer comes with `load` or `set_tokenizer`."""
    return OpenUniModel(*parse(network))


class OpenUniModel(FamilyModel):
    """OpenUni: a frozen InternVL3 reads, learned queries look at what it read, and SANA generates from them."""

    family = "openuni"
    title = "OpenUni"
    front_end = TextFrontEnd
    companion_files: ClassVar[dict[str, str]] = {
        "generator": "transformer/diffusion_pytorch_model.safetensors",
        "image_tokenizer": "diffusion_pytorch_model.safetensors",
    }

    def __init__(self, config: OpenUniConfig, options: OpenUniOptions | None = None) -> None:
        options = options or OpenUniOptions()
        network = OpenUni(config)  # first: the order of random initialisation belongs to a seed
        if options.frozen_dtype == "bfloat16":
            # Weights only: the rotary frequencies are a buffer, and rounded to bf16 they turn late positions elsewhere.
            for weight in network.lmm.parameters():
                weight.data = weight.data.bfloat16()
        super().__init__(config, options, network, FrozenVae(config.vae))
        self.reader = Reader(config, options)
        self._kept: KeptConditions | None = None

    # ---- frozen parts ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """`draw`: `target` latents [B, C, h, w] and `understanding` [B, N, H] of the same square; `read`: the latter of
        the whole image. With `stochastic_depth`, `draw` gives the ViT's input `pixels` [B, 3, S, S] instead.
        """
        return self.reader.encode(self.network, self.frozen, images, use)

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of the weights and options that `encode(..., use)` depends on."""
        return self.reader.fingerprint(self.network, self.frozen, use)

    # ---- losses ----------------------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions in the text-to-image wording; with features, reconstruction prompts after the image."""
        if features is None:
            rows = [self.text.caption(text) for text in texts]
            return Condition(rows, self.text.unconditional())
        rows = [self.text.reconstruction(text) for text in texts]
        return Condition(
            rows,
            understanding=features.get("understanding"),
            pixels=features.get("pixels"),
            negative=self.text.reconstruction(),
        )

    def unconditional(self, batch: int) -> Condition:
        """`Generate an image.`; guidance of a reconstruction uses the image with another prompt instead."""
        ids = self.text.unconditional()
        return Condition([ids] * batch, ids)

    def sample_noise(self, batch: int, generator: torch.Generator) -> FlowNoise:
        """See `loss.sample_noise`."""
        from reca.models.openuni import loss

        return loss.sample_noise(self.config, self.options, batch, generator)

    def generation_loss(self, target: Features, condition: Condition, noise: FlowNoise) -> Loss:
        """See `loss.generation_loss`."""
        from reca.models.openuni import loss

        return loss.generation_loss(self.network, self.options, target, condition, noise)

    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns with labels on the answers."""
        coded = [self.text.conversation(one, with_image, self.options.system) for one in turns]
        return Conversation([ids for ids, _ in coded], [labels for _, labels in coded])

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """See `loss.answer_loss`."""
        from reca.models.openuni import loss

        read = None if features is None else features["understanding"]
        return loss.answer_loss(self.network, self.options, conversation, read)

    # ---- inference -------------------------------------------------------------------------------
    def generate(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """One image per row; options in `sampling.options` are those of `sampler.FlowOptions`."""
        from reca.models.openuni import sampler

        return self.frozen.pictures(
            sampler.sample_latents(self, condition, unconditional, sampling, generators)
        )

    @property
    def kept(self) -> KeptConditions:
        """The unconditional branch of this model's images."""
        from reca.models.openuni.sampler import KeptConditions

        self._kept = self._kept or KeptConditions()
        return self._kept

    def default_sampling(self) -> Sampling:
        """As the authors sample (openuni.md d)."""
        return Sampling(guidance=4.5, steps=20)

    def check_sampling(self, sampling: Sampling) -> None:
        """ValueError on an option that `FlowOptions` does not know or a value that it refuses."""
        from reca.models.openuni.sampler import FlowOptions

        FlowOptions.of(sampling)

    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row, up to the first end."""
        pictures = [] if features is None else [features]
        return self.answer_about(questions, pictures, max_new_tokens)

    def answer_about(
        self, questions: Sequence[str], pictures: Sequence[Features], max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers after several images each; `pictures[k]` has the k-th image of every question."""
        from reca.models.openuni import sampler

        return sampler.answers(self, questions, pictures, max_new_tokens)

    # ---- parameters and weights ------------------------------------------------------------------
    def trainable_parameters(self) -> list[str]:
        """Queries, connector, projector and SANA (openuni.md e); InternVL3 and the autoencoder stay as they are."""
        names = super().trainable_parameters()
        return [name for name in names if weights.is_trained(name.removeprefix("network."))]

    def decay_groups(self) -> DecayGroups:
        """No decay for vectors; queries and SANA's shift tables do decay (openuni.md e)."""
        by_name, names = dict(self.named_parameters()), self.trainable_parameters()
        return DecayGroups(
            decay=tuple(name for name in names if by_name[name].dim() > 1),
            no_decay=tuple(name for name in names if by_name[name].dim() <= 1),
        )

    def memory_profile(self) -> MemoryProfile:
        """The queries with gradient, after a prompt with an image that runs without in two phases.

        The connector's and SANA's blocks are counted as layers of the language model that keep as many values.
        """
        config, llm, sana = self.config, self.config.llm, self.config.sana
        read, two_phases = config.vit.tokens, self.options.step == "two_phase"
        prefix = read + PROMPT
        tokens = config.queries + (0 if two_phases else prefix)
        _, side, _ = config.latent_shape
        reader = llm.num_hidden_layers
        if two_phases and self.options.recompute:
            reader = 2  # the inputs of all, and the layer that is computed again
        generator = sana.num_layers * sana.width * side * side / (tokens * llm.hidden_size)
        connector = config.connector.num_hidden_layers * config.queries / tokens
        return language_profile(
            vars(llm),
            tokens,
            more_layers=round(generator + connector) + reader - llm.num_hidden_layers,
            prefix_tokens=prefix if two_phases else 0,
            kept_width=2 * llm.num_key_value_heads * llm.head_dim,
        )

    def weight_files(self) -> list[WeightFile]:
        """What is trained, InternVL3 and the autoencoder."""
        network, vae = self.network, self.frozen.vae
        return [
            WeightFile("weights", "model.safetensors", network, weights.RELEASED),
            WeightFile("vision", "lmm.safetensors", network.lmm, weights.READER),
            WeightFile("image_tokenizer", "vae.safetensors", vae, weights.HUB),
        ]

    def load_weights(
        self, role: str, path: Path, sha256: Pin | None = None, allow_unpinned: bool = False
    ) -> set[str]:
        """Load one file; gives its role and, where `weights` hold SANA (stage 2, RecA), also `generator`.

        SANA's own file in the place of `weights` is where stage 1 starts: the rest of what is trained is new.
        """
        if role != "weights":
            return super().load_weights(role, path, sha256, allow_unpinned)
        tensors = read(path, sha256, allow_unpinned)
        if weights.is_generator(tensors):
            weights.HUB.load(self.network.transformer, tensors, path)
            self.network.start()
            return {role, "generator"}
        weights.RELEASED.load(self.network, tensors, path)
        return {role, "generator"} if weights.holds_generator(tensors) else {role}

    def load_parts(
        self,
        parts: Mapping[str, Path],
        *,
        sha256: Mapping[str, Pin] | None = None,
        allow_unpinned: bool = False,
    ) -> set[str]:
        """Load released files: `weights`, `vision` (InternVL3, with the tokenizer), `image_tokenizer`, and `generator`
        (SANA), which may be left out where `weights` holds it, and is not read where it does.
        """
        given = {role: Path(path) for role, path in parts.items()}
        generator = given.pop("generator", None)
        if "vision" in given:
            given.setdefault("tokenizer", given["vision"])
        loaded = super().load_parts(given, sha256=sha256, allow_unpinned=allow_unpinned)
        if "generator" in loaded:
            return loaded
        if generator is None:
            raise ValueError(
                f"{parts['weights']}: is of stage 1 and holds no SANA; give generator, the folder of SANA's hub"
            )
        folder = generator / "transformer"
        path = folder if folder.is_dir() else generator
        weights.HUB.load(self.network.transformer, read(path), path)
        return loaded | {"generator"}
