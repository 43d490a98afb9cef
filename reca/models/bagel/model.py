"""BAGEL behind the contract of `reca.models.contract`: encoders, losses, drawing, editing, answers, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor

from reca.core import artifacts
from reca.models.bagel import editing, weights
from reca.models.bagel.batch import IGNORE, Condition, Conversation, FlowNoise, padded
from reca.models.bagel.config import BagelConfig, BagelOptions, parse
from reca.models.bagel.context import Block, Context, empty, extend, picture_block, text_block
from reca.models.bagel.encoders import FrozenVae, Reader, positions
from reca.models.bagel.flow import (
    Noised,
    PackInputs,
    noised,
    on_device,
    run_pack,
    target_places,
    two_phase_loss,
    velocity_loss,
)
from reca.models.bagel.layout import Packed, Split, pack
from reca.models.bagel.network import Bagel
from reca.models.bagel.text import TextFrontEnd, check_vocabulary, load_tokenizer
from reca.models.bagel.vision import patchify, position_ids
from reca.models.contract import (
    DecayGroups,
    Features,
    Loss,
    MemoryProfile,
    Sampling,
    UnifiedModel,
    Use,
    warn_truncated,
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
    reads_several = True

    def __init__(self, config: BagelConfig, options: BagelOptions | None = None) -> None:
        super().__init__()
        self.config, self.options = config, options or BagelOptions()
        self.network = Bagel(config)
        self.frozen = FrozenVae(config.vae)
        self._reader = Reader(config, self.options)
        self._text: TextFrontEnd | None = None

    # ---- text -----------------------------------------------------------------------------------
    @property
    def text(self) -> TextFrontEnd:
        """The text front end; ValueError while the model has no tokenizer."""
        if self._text is None:
            raise ValueError(
                "this BAGEL has no tokenizer yet; load a model folder, which has tokenizer.json"
            )
        return self._text

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Use this tokenizer; ValueError unless its markers are the network's."""
        check_vocabulary(tokenizer, self.config, "tokenizer")
        self._text = TextFrontEnd(tokenizer, self.config)

    # ---- frozen parts ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """`draw`: `target` moments [B, 2z, h, w] and the condition; `read`: what questions are asked about; `edit`:
        moments and what is seen of a picture on either side of an edit.

        `understanding` [B, P, Dvit] are ViT states on `grid` [B, 2] (padding behind); with `options.condition: vae` a
        `draw` condition is the moments of the smaller picture instead.
        """
        return self._reader.encode(self.network, self.frozen, images, use)

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of the weights and options behind `encode(..., use)`."""
        return self._reader.fingerprint(self.network, self.frozen, use)

    # ---- drawing losses --------------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions, or templates behind the picture's understanding embeddings."""
        ids = self.text.ids(texts)
        if features is None:
            return Condition(ids)
        return Condition(ids, features["understanding"], features.get("grid"))

    def sample_noise(self, batch: int, generator: torch.Generator) -> FlowNoise:
        """Normal: time, noise, posterior; uniform: text dropout; normal: a VAE condition's posterior; in this order."""
        config = self.config
        side = config.latent_side * config.latent_patch_size
        z = config.vae.z_channels

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=generator)

        drawn = (normal(), normal(config.latent_tokens, config.latent_width), normal(z, side, side))
        dropout = torch.rand(batch, generator=generator)
        if self.options.condition == "vit":
            return FlowNoise(*drawn, dropout)
        small = config.condition_resolution // config.vae.downsample
        return FlowNoise(*drawn, dropout, normal(z, small, small))

    def generation_loss(self, target: Features, condition: Condition, noise: FlowNoise) -> Loss:
        """Velocity loss (bagel.md 3), summed over latent tokens; `options.step` says in how many phases."""
        config, device = self.config, self._device
        clean = self.frozen.latents(target["target"].to(device), noise.posterior.to(device))
        tokens = patchify(clean, config.latent_patch_size)
        shift = self.options.timestep_shift
        point = noised(tokens, noise.gaussian.to(device), noise.raw.to(device), shift)
        condition = self._with_dropped_texts(condition, noise)
        if self.options.step == "packed":
            return Loss(self._packed_loss(condition, noise, point), noise.count)
        with torch.no_grad():
            blocks = self.blocks(condition)
        kernels = self.options.implementation
        total = two_phase_loss(self.network, blocks, point, self._latent_ids, kernels)
        return Loss(total, noise.count)

    def _with_dropped_texts(self, condition: Condition, noise: FlowNoise) -> Condition:
        share = self.options.text_dropout
        if condition.seen is not None and self.options.template_dropout is not None:
            share = self.options.template_dropout
        dropped = (noise.text_dropout < share).tolist()
        texts = [None if drop else t for t, drop in zip(condition.texts, dropped, strict=True)]
        return Condition(texts, condition.seen, condition.grid)

    def blocks(self, condition: Condition) -> list[Block]:
        """The prefix of a drawing: what was seen of a picture, then the text."""
        found: list[Block] = []
        if condition.seen is not None:
            if condition.grid is None:
                raise ValueError("a VAE condition has gen tokens; set network.options.step: packed")
            found.append(self.vit_block(condition.seen, condition.grid))
        if any(text is not None for text in condition.texts):
            found.append(text_block(self.network, condition.texts))
        return found

    def vit_block(self, states: Tensor, grid: Tensor) -> Block:
        """A block of understanding embeddings from ViT states [B, P, Dvit] on grids [B, 2]."""
        ids, valid = positions(grid, states.shape[1], self.config.vit_max_num_patch_per_side)
        weight = self.network.connector.fc1.weight
        states = states.to(weight.device, weight.dtype)
        embeddings = self.network.read(states, ids.to(weight.device))
        return picture_block(
            self.network, embeddings, None if valid is None else valid.to(weight.device)
        )

    def _packed_loss(self, condition: Condition, noise: FlowNoise, point: Noised) -> Tensor:
        packed = on_device(self.drawing_pack(condition), self._device)
        inputs = self._pack_inputs(condition, noise, point, packed)
        kernels = self.options.implementation
        states = run_pack(
            self.network,
            packed,
            inputs,
            frozen=self.options.freeze_und,
            implementation=kernels,
        )
        return velocity_loss(self.network, states.latent[target_places(packed)], point, kernels)

    def drawing_pack(self, condition: Condition) -> Packed:
        """The packed sequences of `generation_loss`: one sample per row."""
        side = self.config.latent_side
        goal = Split("vae", grid=(side, side), target=True)
        samples = []
        for row, text in enumerate(condition.texts):
            sample = [] if condition.seen is None else [self._seen_split(condition, row)]
            if text is not None:
                sample.append(Split("text", tuple(text)))
            samples.append([*sample, goal])
        return pack(
            samples,
            self.config.special,
            self.config.vit_max_num_patch_per_side,
            self.config.max_latent_size,
        )

    def _seen_split(self, condition: Condition, row: int) -> Split:
        if condition.grid is not None:
            high, wide = condition.grid[row].tolist()
            return Split("vit", grid=(high, wide))
        assert condition.seen is not None
        high, wide = (n // self.config.latent_patch_size for n in condition.seen.shape[-2:])
        return Split("vae", grid=(high, wide))

    def _pack_inputs(
        self, condition: Condition, noise: FlowNoise, point: Noised, packed: Packed
    ) -> PackInputs:
        """ViT states, and per row the clean latents (time 0) before the noisy ones."""
        width = self.config.vit.hidden_size
        vit = point.x.new_zeros(0, width)
        x, t = point.x, point.t.unsqueeze(1).expand(point.x.shape[:2])
        if condition.seen is not None and condition.grid is not None:
            sizes = condition.grid.prod(dim=1).tolist()
            rows = zip(condition.seen.to(self._device), sizes, strict=True)
            vit = torch.cat([states[:size] for states, size in rows]).to(self._dtype)
        elif condition.seen is not None:
            assert noise.condition is not None, "drawn with options.condition vae"
            posterior = noise.condition.to(self._device)
            clean = self.frozen.latents(condition.seen.to(self._device), posterior)
            clean = patchify(clean, self.config.latent_patch_size)
            x, t = torch.cat([clean, x], dim=1), torch.cat([t.new_zeros(clean.shape[:2]), t], dim=1)
        return PackInputs(vit, x.flatten(0, 1), t.flatten())

    # ---- edit loss -------------------------------------------------------------------------------
    def sample_edit_noise(self, batch: int, generator: torch.Generator) -> Any:
        """Draws of an edit loss; see `reca.models.bagel.editing`."""
        return editing.sample_noise(self, batch, generator)

    def edit_loss(
        self, target: Features, source: Features, instructions: Sequence[str], noise: Any
    ) -> Loss:
        """Velocity loss of the target behind [VAE(source)][ViT(source)][text]
        (bagel.md 2), summed over latent tokens.
        """
        return Loss(editing.loss(self, target, source, instructions, noise), noise.count)

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
        network, device = self.network, self._device
        ids, labels = conversation.ids.to(device), conversation.labels.to(device)
        blocks = [] if features is None else [self._seen_block(features)]
        blocks.append(Block(network.embed(ids), True, conversation.lengths.to(device)))
        _, hidden = extend(network, empty(network, len(ids)), blocks)
        hidden_text = hidden.und[:, -ids.shape[1] :]
        wanted = labels != IGNORE
        head = network.language_model.lm_head.weight
        total = linear_cross_entropy(
            hidden_text[wanted],
            head,
            labels[wanted],
            reduction="sum",
            implementation=self.options.implementation,
        )
        return Loss(total, conversation.count)

    def _seen_block(self, features: Features) -> Block:
        if "grid" not in features:
            raise ValueError("questions need ViT features; encode the pictures with use 'read'")
        return self.vit_block(features["understanding"], features["grid"])

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
        from reca.models.bagel.drawing import draw

        return draw(self, condition, sampling, generators)

    def default_sampling(self) -> Sampling:
        """As the authors draw for GenEval and WISE, and edit (bagel.md 4)."""
        return Sampling(guidance=4.0, steps=50)

    def check_sampling(self, sampling: Sampling) -> None:
        """ValueError on an option that drawing does not know or a value that it refuses."""
        from reca.models.bagel.drawing import options_of

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
        from reca.models.bagel.drawing import edit

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
        """Greedy answers behind [ViT pictures in order][text] (bagel.md 4), one per row, up to EOS."""
        from reca.models.bagel.drawing import autocast, greedy

        with autocast(self):
            context = self.question_context(questions, pictures)
            rows = greedy(self.network, context, max_new_tokens)
        warn_truncated(rows, self.config.special.eos)
        return [self.text.decoded(row) for row in rows]

    def question_context(self, questions: Sequence[str], pictures: Sequence[Features]) -> Context:
        """Kept keys and values of questions behind their pictures, of which `pictures[k]` has each row's k-th."""
        context = empty(self.network, len(questions))
        for features in pictures[:-1]:  # one by one: the mask of one pass grows with their square
            context, _ = extend(self.network, context, [self._seen_block(features)], frozen=True)
        blocks = [self._seen_block(features) for features in pictures[-1:]]
        blocks.append(text_block(self.network, self.text.ids(questions)))
        return extend(self.network, context, blocks, frozen=True)[0]

    def context(self, condition: Condition) -> Context:
        """Kept keys and values of a condition."""
        start, blocks = empty(self.network, len(condition)), self.blocks(condition)
        return extend(self.network, start, blocks, frozen=True)[0] if blocks else start

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
        self.set_tokenizer(load_tokenizer(path, self.config))

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
        self.set_tokenizer(load_tokenizer(given.get("tokenizer", home), self.config))

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

    @property
    def _device(self) -> torch.device:
        return self.network.vae2llm.weight.device

    @property
    def _dtype(self) -> torch.dtype:
        return self.network.connector.fc1.weight.dtype

    @property
    def _latent_ids(self) -> Tensor:
        side = self.config.latent_side
        return position_ids((side, side), self.config.max_latent_size).to(self._device)
