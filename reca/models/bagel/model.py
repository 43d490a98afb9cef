"""BAGEL's implementation of `reca.models.contract`: every operation forwards to another module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reca.models.bagel import weights
from reca.models.bagel.batch import Condition, Conversation, FlowNoise
from reca.models.bagel.config import BagelConfig, BagelOptions, parse
from reca.models.bagel.encoders import FrozenVae, Reader
from reca.models.bagel.network import Bagel
from reca.models.bagel.text import TextFrontEnd
from reca.models.checkpoint_io import Pin
from reca.models.common.batching import padded
from reca.models.common.family import FamilyModel, WeightFile
from reca.models.common.memory import language_profile
from reca.models.common.tokenizer import IGNORE
from reca.models.contract import DecayGroups, Features, Loss, MemoryProfile, Sampling, Use

if TYPE_CHECKING:
    from PIL.Image import Image

BASE_FILE, VAE_FILE = "ema.safetensors", "ae.safetensors"  # in the released folder


def build(network: Mapping[str, Any]) -> BagelModel:
    """Build an untrained BAGEL from its `network` section; its tokenizer comes with `load` or `set_tokenizer`."""
    model = BagelModel(*parse(network))
    if model.options.frozen_dtype == "bfloat16":
        for name, weight in model.network.named_parameters():
            if not weights.is_trained(name):
                weight.data = weight.data.bfloat16()
    return model


class BagelModel(FamilyModel):
    """BAGEL: one decoder with an understanding expert and a generation expert."""

    family = "bagel"
    longest_answer = 500  # bagel.md 4
    title = "BAGEL"
    front_end = TextFrontEnd

    def __init__(self, config: BagelConfig, options: BagelOptions | None = None) -> None:
        options = options or BagelOptions()
        network = Bagel(
            config
        )  # first: what a seed means depends on the order of random initialisation
        super().__init__(config, options, network, FrozenVae(config.vae))
        self.reader = Reader(config, options)

    # ---- frozen parts ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Features by use.

        `draw`: `target` moments [B, 2z, h, w] and RecA's condition; `read`: the image of a question; `edit`: moments
        and ViT states of source or target. `understanding` [B, P, Dvit] are right-padded ViT states on `grid` [B, 2];
        with `options.condition: vae` the condition of `draw` is the moments of the smaller image instead.
        """
        return self.reader.encode(self.network, self.frozen, images, use)

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of the weights and options that `encode(..., use)` depends on."""
        return self.reader.fingerprint(self.network, self.frozen, use)

    # ---- generation losses -----------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions, or templates after the image's understanding embeddings."""
        ids = self.text.ids(texts)
        if features is None:
            return Condition(ids)
        return Condition(ids, features["understanding"], features.get("grid"))

    def sample_noise(self, batch: int, generator: torch.Generator) -> FlowNoise:
        """Sample every random number of one generation loss; see `loss.sample_noise` for their order."""
        from reca.models.bagel import loss

        return loss.sample_noise(self.config, self.options, batch, generator)

    def generation_loss(self, target: Features, condition: Condition, noise: FlowNoise) -> Loss:
        """Velocity loss (bagel.md 3), summed over latent tokens; `options.step` selects one or two phases."""
        from reca.models.bagel import loss

        parts = (self.network, self.frozen, self.options)
        return Loss(loss.generation_loss(*parts, target, condition, noise), noise.count)

    # ---- edit loss -------------------------------------------------------------------------------
    def sample_edit_noise(self, batch: int, generator: torch.Generator) -> Any:
        """Sample every random number of one edit loss; see `loss.sample_edit_noise` for their order."""
        from reca.models.bagel import loss

        return loss.sample_edit_noise(self.config, batch, generator)

    def edit_loss(
        self, target: Features, source: Features, instructions: Sequence[str], noise: Any
    ) -> Loss:
        """Velocity loss of the target after [VAE(source)][ViT(source)][text]
        (bagel.md 2), summed over latent tokens.
        """
        from reca.models.bagel import loss

        texts = self.text.ids(instructions)
        parts = (self.network, self.frozen, self.options)
        return Loss(loss.edit_loss(*parts, target, source, texts, noise), noise.count)

    # ---- answer loss -----------------------------------------------------------------------------
    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns: each text is BOS ids EOS, each answer predicts its ids and EOS."""
        coded = [self.text.conversation(one) for one in turns]
        ids, real = padded([ids for ids, _ in coded], self.config.special.eos)
        labels, _ = padded([labels for _, labels in coded], IGNORE)
        return Conversation(ids, labels, real.sum(dim=1))

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """Next-token cross-entropy on answers (bagel.md 3), with gradients for all trained weights."""
        from reca.models.bagel import loss

        kernels = self.options.implementation
        total = loss.answer_loss(self.network, conversation, features, kernels)
        return Loss(total, conversation.count)

    # ---- inference -------------------------------------------------------------------------------
    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Generate one image per row (bagel.md 4); `sampling.options` are those of `FlowOptions`.

        The unconditional context omits the last text but keeps an input image.
        """
        from reca.models.bagel.sampler import draw

        return draw(self, condition, sampling, generators)

    def default_sampling(self) -> Sampling:
        """The authors' settings for GenEval, WISE and editing (bagel.md 4)."""
        return Sampling(guidance=4.0, steps=50)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError for an unknown option or invalid value of `FlowOptions`."""
        from reca.models.bagel.sampler import FlowOptions

        FlowOptions.of(sampling)

    @torch.no_grad()
    def edit(
        self,
        images: Sequence[Image],
        instructions: Sequence[str],
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Edited images: contexts [VAE][ViT][text], without text, and text alone (bagel.md 4)."""
        from reca.models.bagel.sampler import edit

        return edit(self, images, instructions, sampling, generators)

    def unconditional(self, batch: int) -> Condition:
        """The condition without any text."""
        return Condition([None] * batch)

    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row, up to EOS."""
        pictures = [] if features is None else [features]
        return self.answer_about(questions, pictures, max_new_tokens)

    @torch.no_grad()
    def answer_about(
        self, questions: Sequence[str], pictures: Sequence[Features], max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers after [ViT images in order][text] (bagel.md 4), one per row, up to EOS."""
        from reca.models.bagel import sampler

        return sampler.answers(self, questions, pictures, max_new_tokens)

    # ---- parameters and weights ------------------------------------------------------------------
    def trainable_parameters(self) -> list[str]:
        """The gen expert, the time embedder and the latent maps (bagel.md 5); the und side too with `freeze_und:
        false`.
        """
        names = super().trainable_parameters()
        return [n for n in names if weights.is_trained(n) or not self.options.freeze_und]

    def decay_groups(self) -> DecayGroups:
        """One group: the published weight decay is 0."""
        return DecayGroups(decay=tuple(self.trainable_parameters()), no_decay=())

    def memory_profile(self) -> MemoryProfile:
        """The noise block with gradients, after a prefix of the condition and a template of 40 tokens (bagel.md 5).

        In two phases the prefix runs without gradients.
        """
        config, llm, is_vit = self.config, self.config.llm, self.options.condition == "vit"
        stride = config.vit.patch_size if is_vit else config.stride
        seen = (config.condition_resolution // stride) ** 2
        prefix, two_phases = seen + 2 + 42, self.options.step == "two_phase"
        return language_profile(
            vars(llm),
            config.latent_tokens + 2 + (0 if two_phases else prefix),
            prefix_tokens=prefix if two_phases else 0,
            kept_width=2 * llm.num_key_value_heads * llm.head_dim,
        )

    def weight_files(self) -> list[WeightFile]:
        """Network and autoencoder."""
        return [
            WeightFile("weights", "model.safetensors", self.network, weights.NETWORK),
            WeightFile("vae", VAE_FILE, self.frozen.vae, weights.VAE),
        ]

    def load_weights(
        self, role: str, path: Path, sha256: Pin | None = None, allow_unpinned: bool = False
    ) -> set[str]:
        """Assign the tensors of safetensors files one by one, without a second copy of the network in host memory."""
        if role == "weights":
            weights.load_network(self.network, path)
        else:
            weights.load_vae(self.frozen.vae, path)
        return {role}

    def load_parts(self, parts: Mapping[str, Path], **pins: Any) -> set[str]:
        """Load official files: `weights` (a checkpoint of the network, or the Hub folder), `vae` and `tokenizer`.

        `vae` and `tokenizer` may be omitted if `weights` is the folder of the base model, which contains them.
        """
        given = {role: Path(path) for role, path in parts.items()}
        if source := given.get("weights"):
            home = source if source.is_dir() else source.parent
            given = {"vae": home, "tokenizer": home} | given
            if (source / BASE_FILE).is_file():
                given["weights"] = source / BASE_FILE
        if "vae" in given and given["vae"].is_dir():
            given["vae"] /= VAE_FILE
        return super().load_parts(given, **pins)
