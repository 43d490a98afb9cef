"""BAGEL behind the contract of `reca.models.contract`: encoders, losses, drawing, editing, answers, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reca.core import artifacts
from reca.models.bagel import weights
from reca.models.bagel.batch import IGNORE, Condition, Conversation, FlowNoise, padded
from reca.models.bagel.config import BagelConfig, BagelOptions, parse
from reca.models.bagel.encoders import FrozenVae, Reader
from reca.models.bagel.network import Bagel
from reca.models.bagel.text import BagelText
from reca.models.contract import (
    DecayGroups,
    Features,
    Loss,
    MemoryProfile,
    Sampling,
    UnifiedModel,
    Use,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerFast

DESCRIPTION, FORMAT = "reca_model.json", 1
NETWORK, VAE = "model.safetensors", "ae.safetensors"


def build(network: Mapping[str, Any]) -> BagelModel:
    """Build an untrained BAGEL from its `network` section; its tokenizer comes with `load` or `set_tokenizer`."""
    model = BagelModel(*parse(network))
    if model.options.frozen_dtype == "bfloat16":
        for name, weight in model.network.named_parameters():
            if not weights.is_trained(name):
                weight.data = weight.data.bfloat16()
    return model


class BagelModel(UnifiedModel):
    """BAGEL: one decoder with an expert that reads and an expert that draws."""

    family = "bagel"

    def __init__(self, config: BagelConfig, options: BagelOptions | None = None) -> None:
        super().__init__()
        self.config, self.options = config, options or BagelOptions()
        self.network = Bagel(config)
        self.frozen = FrozenVae(config.vae)
        self.reader = Reader(config, self.options)
        self._text: BagelText | None = None

    # ---- text -----------------------------------------------------------------------------------
    @property
    def text(self) -> BagelText:
        """The text front end; ValueError while the model has no tokenizer."""
        if self._text is None:
            raise ValueError(
                "this BAGEL has no tokenizer yet; load a model folder, which has tokenizer.json"
            )
        return self._text

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Use this tokenizer; ValueError unless its markers are the network's."""
        self._text = BagelText(tokenizer, self.config)

    # ---- frozen parts ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """`draw`: `target` moments [B, 2z, h, w] and the condition; `read`: what questions are asked about; `edit`:
        moments and what is seen of a picture on either side of an edit.

        `understanding` [B, P, Dvit] are ViT states on `grid` [B, 2] (padding behind); with `options.condition: vae` a
        `draw` condition is the moments of the smaller picture instead.
        """
        return self.reader.encode(self.network, self.frozen, images, use)

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of the weights and options behind `encode(..., use)`."""
        return self.reader.fingerprint(self.network, self.frozen, use)

    # ---- drawing losses --------------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions, or templates behind the picture's understanding embeddings."""
        ids = self.text.ids(texts)
        if features is None:
            return Condition(ids)
        return Condition(ids, features["understanding"], features.get("grid"))

    def sample_noise(self, batch: int, generator: torch.Generator) -> FlowNoise:
        """Every random number of one generation loss; see `loss.sample_noise` for their order."""
        from reca.models.bagel import loss

        return loss.sample_noise(self.config, self.options, batch, generator)

    def generation_loss(self, target: Features, condition: Condition, noise: FlowNoise) -> Loss:
        """Velocity loss (bagel.md 3), summed over latent tokens; `options.step` says in how many phases."""
        from reca.models.bagel import loss

        parts = (self.network, self.frozen, self.options)
        return Loss(loss.generation_loss(*parts, target, condition, noise), noise.count)

    # ---- edit loss -------------------------------------------------------------------------------
    def sample_edit_noise(self, batch: int, generator: torch.Generator) -> Any:
        """Every random number of one edit loss; see `loss.sample_edit_noise` for their order."""
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

    # ---- reading losses --------------------------------------------------------------------------
    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns: each text is BOS ids EOS, each answer predicts its ids and EOS."""
        flat = [text for one in turns for turn in one for text in turn]
        coded = iter(self.text.ids(flat))
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for one in turns:
            rows.append([])
            labels.append([])
            for number, ids in enumerate(ids for _ in one for ids in (next(coded), next(coded))):
                framed = [self.config.special.bos, *ids, self.config.special.eos]
                rows[-1] += framed
                silent = [IGNORE] * len(framed)
                labels[-1] += [*framed[1:], IGNORE] if number % 2 else silent
        return padded(rows, labels, self.config.special.eos)

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """Next-token cross-entropy on answers (bagel.md 3), with gradient to whatever is trained."""
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
        """Draw one picture per row (bagel.md 4); `sampling.options` are the options of `FlowOptions`.

        Guidance pushes away from the context without the last text, which keeps a picture that was seen.
        """
        from reca.models.bagel.sampler import draw

        return draw(self, condition, sampling, generators)

    def default_sampling(self) -> Sampling:
        """As the authors draw for GenEval and WISE, and edit (bagel.md 4)."""
        return Sampling(guidance=4.0, steps=50)

    def check_sampling(self, sampling: Sampling) -> None:
        """ValueError on an option that drawing does not know or a value that it refuses."""
        from reca.models.bagel.sampler import options_of

        options_of(sampling)

    @torch.no_grad()
    def edit(
        self,
        images: Sequence[Image],
        instructions: Sequence[str],
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Pictures changed as told: contexts [VAE][ViT][text], without text, and text alone (bagel.md 4)."""
        from reca.models.bagel.sampler import edit

        return edit(self, images, instructions, sampling, generators)

    def unconditional(self, batch: int) -> Condition:
        """No text at all."""
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
        return [
            name
            for name, _ in self.named_parameters()
            if name.startswith("network.")
            and (weights.is_trained(name) or not self.options.freeze_und)
        ]

    def decay_groups(self) -> DecayGroups:
        """One group: the published weight decay is 0."""
        return DecayGroups(decay=tuple(self.trainable_parameters()), no_decay=())

    def memory_profile(self) -> MemoryProfile:
        """The noise block with gradients; behind a prefix of the condition and a template of 40 tokens (bagel.md 5),
        which runs without in two phases.
        """
        config, llm, is_vit = self.config, self.config.llm, self.options.condition == "vit"
        seen = (
            config.condition_resolution // (config.vit.patch_size if is_vit else config.stride)
        ) ** 2
        values = config.vit.hidden_size if is_vit else 2 * config.latent_width
        prefix, two_phases = seen + 2 + 42, self.options.step == "two_phase"
        return MemoryProfile(
            tokens=config.latent_tokens + 2 + (0 if two_phases else prefix),
            layers=llm.num_hidden_layers,
            width=llm.hidden_size,
            inner=llm.intermediate_size,
            prefix_tokens=prefix if two_phases else 0,
            kept_width=2 * llm.num_key_value_heads * llm.head_dim,
            features=2 * config.latent_width * config.latent_tokens + seen * values,
        )

    def official_state(self) -> dict[str, Tensor]:
        """The network under its released names, as in `ema.safetensors`."""
        return weights.official_state(self.network)

    def load(self, path: Path) -> None:
        """Load a model folder, or only the network from an official checkpoint file (a RecA result, say)."""
        path = Path(path)
        if not (path / DESCRIPTION).is_file():
            weights.load_network(self.network, path)
            return
        weights.load_network(self.network, path / NETWORK)
        weights.load_vae(self.frozen.vae, path / VAE)
        self._text = BagelText.read(path, self.config)

    def load_parts(
        self,
        parts: Mapping[str, Path],
        *,
        sha256: Mapping[str, str] | None = None,
        allow_unpinned: bool = False,
    ) -> None:
        """Load official files: `weights` (a checkpoint of the network, or the hub folder), `vae` and `tokenizer`.

        `vae` and `tokenizer` may be left out where `weights` is the folder of the base, which holds them.
        """
        given = {role: Path(path) for role, path in parts.items()}
        if "weights" not in given or not set(given) <= {"weights", "vae", "tokenizer"}:
            raise ValueError(
                f"BAGEL is made of weights, vae and tokenizer; given: {', '.join(given) or 'nothing'}"
            )
        home = given["weights"] if given["weights"].is_dir() else given["weights"].parent
        source = given["weights"]
        if source.is_dir() and (source / "ema.safetensors").is_file():
            source = source / "ema.safetensors"
        vae = given.get("vae", home)
        weights.load_network(self.network, source)
        weights.load_vae(self.frozen.vae, vae / VAE if vae.is_dir() else vae)
        self._text = BagelText.read(given.get("tokenizer", home), self.config)

    def save(self, directory: Path) -> None:
        """Write network, VAE, tokenizer under official names, and the description last."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights.save_official(self.network, directory / NETWORK)
        weights.save_official(self.frozen.vae, directory / VAE)
        self.text.tokenizer.save_pretrained(str(directory))
        network = self.config.to_dict() | {"options": asdict(self.options)}
        described = {"family": self.family, "network": network, "format": FORMAT}
        artifacts.write_json(directory / DESCRIPTION, described)
