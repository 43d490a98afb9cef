"""Harmon behind the contract of `reca.models.contract`: layouts, network, sampler and frozen VAE put together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from reca_kernels import linear_cross_entropy
from torch import Tensor
from torch.nn import functional as F

from reca.core import artifacts
from reca.core.finite import demand, finite_rows
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
from reca.models.harmon import layout as layouts
from reca.models.harmon import sampler as sampling_rules
from reca.models.harmon import weights
from reca.models.harmon.batch import Condition, Conversation, DiffusionNoise
from reca.models.harmon.config import HarmonConfig
from reca.models.harmon.diffusion import SLICE
from reca.models.harmon.layout import IGNORE, Prompts
from reca.models.harmon.network import Dropout, Harmon, scaled_gradient
from reca.models.harmon.options import HarmonOptions, parse
from reca.models.harmon.text import TextFrontEnd, check_vocabulary, load_tokenizer
from reca.models.harmon.vae import FrozenVae

if TYPE_CHECKING:
    from PIL.Image import Image

DESCRIPTION = "reca_model.json"
FORMAT = 1
_TRAINED = "network."  # the attribute that holds all that RecA trains
_UNUSED = "network.mar.class_emb.weight"  # never has a gradient
_SEEDS = 2**62


def build(network: Mapping[str, Any]) -> HarmonModel:
    """Build an untrained Harmon from its `network` section; its tokenizer comes with `load` or `set_tokenizer`."""
    return HarmonModel(*parse(network))


class HarmonModel(UnifiedModel):
    """Harmon: one masked autoencoder that reads and draws around a language model, with a diffusion head."""

    family = "harmon"
    companion_files: ClassVar[dict[str, str]] = {"image_tokenizer": "kl16.ckpt"}

    def __init__(self, config: HarmonConfig, options: HarmonOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or HarmonOptions()
        self.network = Harmon(config)
        self.frozen = FrozenVae(config, self.options.drawing, self.options.encode_batch)
        self._text: TextFrontEnd | None = None

    # ---- text -----------------------------------------------------------------------------------
    @property
    def text(self) -> TextFrontEnd:
        """The text front end; ValueError while the model has no tokenizer."""
        if self._text is None:
            raise ValueError(
                "this Harmon has no tokenizer yet; load a model folder, which has tokenizer.json"
            )
        return self._text

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use this tokenizer; ValueError unless it fits the network."""
        check_vocabulary(tokenizer, self.config.end, "tokenizer")
        self._text = TextFrontEnd(tokenizer, self.config.end)

    # ---- frozen parts ----------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Sequence[Image], use: Use) -> Features:
        """Latents [B, m, n, C]: `target` of pictures that are drawn, `latents` of those that are read.

        With the option `frozen_condition` also `understanding` [B, L + S, H] of pictures that are drawn.
        """
        latents = self.frozen.encode(images, use)
        if use == "read":
            return {"latents": latents}
        if not self.options.frozen_condition:
            return {"target": latents}
        chunk = self.options.encode_batch
        read = [self._understand(part) for part in latents.split(chunk)]
        return {"target": latents, "understanding": torch.cat(read)}

    def encoder_fingerprint(self, use: Use) -> str:
        """Hash of all behind `encode(..., use)`: the VAE, and the reader too where its embeddings are frozen."""
        found = self.frozen.fingerprint(use)
        if use == "read" or not self.options.frozen_condition:
            return found
        digest = hashlib.sha256(found.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            if name.startswith(("mar.", "proj_in.")):
                digest.update(name.encode())
                whole = tensor.detach().cpu().contiguous()
                digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    # ---- conditions and draws ----------------------------------------------------------------------
    def condition(self, texts: Sequence[str], features: Features | None = None) -> Condition:
        """Captions in the text-to-image wording; with features, reconstruction prompts around the picture."""
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

    def sample_noise(self, batch: int, generator: torch.Generator) -> DiffusionNoise:
        """In this order: mask rate, orders, timesteps, noise, text dropout, the seed of MAR's dropout
        (harmon.md d1).
        """
        tokens, mar = self.config.tokens, self.config.mar
        uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
        masked = layouts.masked_count(tokens, layouts.mask_rate(uniform, mar.min_mask_rate))
        orders = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
        rows = mar.repeats * batch * tokens
        t = torch.randint(1000, (rows,), generator=generator)
        noise = torch.randn(rows, mar.latent_channels, generator=generator)
        text_dropout = torch.rand(batch, generator=generator)
        return DiffusionNoise(orders, masked, t, noise, text_dropout, self._dropout(generator))

    def _dropout(self, generator: torch.Generator) -> Dropout | None:
        if not (self.config.mar.dropout or self.config.mar.attention_dropout):
            return None
        return Dropout(int(torch.randint(_SEEDS, (), generator=generator)))

    # ---- drawing loss ------------------------------------------------------------------------------
    def generation_loss(
        self, target: Features, condition: Condition, noise: DiffusionNoise
    ) -> Loss:
        """Noise error and variational bound on the masked tokens, `repeats` noise draws each, in fp32
        (harmon.md d1, d2).
        """
        latents = target["target"].to(self.device).float().flatten(1, 2)  # [B, L, C]
        hidden, _ = layouts.places(noise.orders, noise.masked)
        z = self.token_conditions(latents, condition, noise)
        rows = self._loss_rows(hidden, noise)
        own = rows % latents.shape[:2].numel()  # repeats share target and condition
        mse, vb = self.network.mar.diffloss.losses(
            latents.flatten(0, 1)[own],
            z.flatten(0, 1)[own],
            noise.t.to(self.device)[rows],
            noise.gaussian.to(self.device)[rows],
            slices=-(-len(noise.t) // SLICE),  # by all rows: ranks mask unequal numbers of them
        )
        return Loss((mse + vb).sum(), len(rows))

    def _loss_rows(self, hidden: Tensor, noise: DiffusionNoise) -> Tensor:
        """Indices of the rows with a loss among [repeats, B, L], flat; hidden places [B, K] are theirs."""
        batch, tokens = noise.orders.shape
        repeats = len(noise.t) // (batch * tokens)
        within = hidden + tokens * torch.arange(batch).unsqueeze(1)  # [B, K]
        block = batch * tokens * torch.arange(repeats).view(-1, 1, 1)
        return (block + within).flatten().to(self.device)

    def token_conditions(
        self, latents: Tensor, condition: Condition, noise: DiffusionNoise
    ) -> Tensor:
        """The head's conditions z [B, L, D] for latents [B, L, C], of which the masked ones are not seen."""
        grid, dropout = self.config.grid, noise.dropout
        _, visible = layouts.places(noise.orders, noise.masked)
        visible = visible.to(self.device)
        mar = self.network.mar
        seen = mar.encode(latents, grid, visible, dropout and dropout.branch(1))
        embeddings, mask = self._prompt(condition, noise)
        image = self.network.to_llm(seen)
        embeddings = torch.cat([embeddings, image.to(embeddings.dtype)], dim=1)
        mask = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)
        hidden = self.network.hidden(embeddings, mask=mask, positions=layouts.positions(mask))
        encoded = self.network.with_context(seen, hidden[:, -image.shape[1] :])
        return mar.decode(encoded, grid, visible, dropout and dropout.branch(2))

    def _prompt(self, condition: Condition, noise: DiffusionNoise) -> tuple[Tensor, Tensor]:
        """Embeddings [B, P, H] and mask [B, P] of the prompts, single texts dropped, the picture put in."""
        dropped = noise.text_dropout < self.options.text_dropout
        texts = [
            condition.dropped if drop else text
            for text, drop in zip(condition.texts, dropped.tolist(), strict=True)
        ]
        hide = self.options.dropout_hides_image and condition.has_image
        seen = ~dropped.to(self.device) if hide else None
        return self._embedded(texts, self._image(condition, noise.dropout), seen)

    def _image(self, condition: Condition, dropout: Dropout | None = None) -> Tensor | None:
        """The picture's understanding embeddings [B, L + S, H]; their gradient is scaled down (harmon.md e)."""
        if condition.understanding is not None:
            return condition.understanding.to(self.device)
        if condition.latents is None:
            return None
        return self._understand(condition.latents, dropout)

    def _understand(self, latents: Tensor, dropout: Dropout | None = None) -> Tensor:
        tokens = latents.to(self.device).float().flatten(1, 2)
        read = self.network.understand(tokens, self.config.grid, dropout and dropout.branch(0))
        return scaled_gradient(read, self.options.condition_gradient)

    def _embedded(
        self, texts: Sequence[Sequence[int]], image: Tensor | None, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        prompts = self._prompts(texts)
        if prompts.has_image != (image is not None):
            raise ValueError(
                "a prompt has a place for a picture, but there is none, or the other way round"
            )
        embeddings = self.network.embed(prompts.ids)
        image = None if image is None else image.to(embeddings.dtype)
        return layouts.expanded(embeddings, prompts.mask, image, seen)

    def _prompts(self, texts: Sequence[Sequence[int]]) -> Prompts:
        return layouts.prompts(texts, self.config.end).to(self.device)

    # ---- reading loss ------------------------------------------------------------------------------
    def conversation(
        self, turns: Sequence[Sequence[tuple[str, str]]], with_image: bool = True
    ) -> Conversation:
        """Tokenise (question, answer) turns with labels on the answers, cut to `max_text` tokens."""
        room = self.options.max_text
        coded = [self.text.conversation(one, with_image) for one in turns]
        return Conversation(
            [ids[:room] for ids, _ in coded], [labels[:room] for _, labels in coded]
        )

    def with_noise(self, conversation: Conversation, generator: torch.Generator) -> Conversation:
        """Draw the seed of the reader's dropout."""
        return replace(conversation, dropout=self._dropout(generator))

    def answer_loss(self, conversation: Conversation, features: Features | None) -> Loss:
        """Next-token cross-entropy (fp32) on answers (harmon.md c); only their hidden states pass the head, and the
        logits of the whole vocabulary are never stored.
        """
        image = None
        if features is not None:
            image = self._understand(features["latents"], conversation.dropout)
        embeddings, mask = self._embedded(conversation.texts, image)
        hidden = self.network.hidden(embeddings, mask=mask)
        width = max(map(len, conversation.texts))
        labels = layouts.labels(conversation.labels, width)
        length = 0 if image is None else image.shape[1]
        targets = layouts.shifted_labels(labels, length).to(self.device)
        total = linear_cross_entropy(
            hidden[:, :-1],
            self.network.llm.lm_head.weight,
            targets,
            ignore_index=IGNORE,
            reduction="sum",
            implementation=self.options.implementation,
        )
        return Loss(total, conversation.count)

    # ---- inference -----------------------------------------------------------------------------------
    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[Image]:
        """Draw one picture per row (harmon.md d4, d5); options in `sampling.options` are those of `SamplerOptions`."""
        latents = self.draw_latents(condition, unconditional, sampling, generators)
        return self.frozen.pictures(latents)

    def default_sampling(self) -> Sampling:
        """As every script of the authors draws (harmon.md d4)."""
        return Sampling(guidance=3.0, steps=64)

    def check_sampling(self, sampling: Sampling) -> None:
        """ValueError on an option that `SamplerOptions` does not know or a value that it refuses."""
        sampling_rules.SamplerOptions.of(sampling)

    @torch.no_grad()
    def draw_latents(
        self,
        condition: Condition,
        unconditional: Condition | None,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The latents [B, m, n, C] of `generate`'s pictures."""
        options = sampling_rules.SamplerOptions.of(sampling)
        if len(generators) != len(condition):
            raise ValueError(
                f"{len(condition)} pictures need as many generators, got {len(generators)}"
            )
        if options.guided and unconditional is None:
            raise ValueError(
                "sampling.guidance other than 0 and 1 needs an unconditional condition"
            )
        mar = self.config.mar
        noise = sampling_rules.RowNoise(
            generators, mar.sampling_steps, mar.latent_channels, self.device
        )
        drawing = self.drawing(condition, unconditional if options.guided else None)
        orders = noise.orders(self.config.tokens)
        *_, last = sampling_rules.sample(drawing, orders, options, noise)
        demand(finite_rows(last.tokens), "latents")
        return last.tokens.unflatten(1, self.config.grid)

    def drawing(
        self, condition: Condition, unconditional: Condition | None
    ) -> sampling_rules.Drawing:
        """The network as the sampler calls it; each distinct prompt is run once, pictures' prompts always.

        The unconditional half has no picture: its prompts are padded to the length of those that have one.
        """
        parts = [condition] if unconditional is None else [condition, unconditional]
        found: list[tuple[Tensor, Tensor]] = []
        rows: list[int] = []
        for part in parts:
            start = sum(len(mask) for _, mask in found)
            texts, index = _distinct(part)
            found.append(self._embedded(texts, self._image(part)))
            rows += [start + at for at in index]
        embeddings, mask = self._side_by_side(found)
        return sampling_rules.Drawing(
            self.network,
            self.config.grid,
            embeddings,
            mask,
            torch.tensor(rows, device=self.device),
        )

    def _side_by_side(self, found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        width = max(mask.shape[1] for _, mask in found)
        filler = self.network.embed(torch.tensor([[self.config.end]], device=self.device))
        padded = []
        for embeddings, mask in found:
            blank = filler.expand(len(mask), width - mask.shape[1], -1)
            padded.append((torch.cat([embeddings, blank], dim=1), F.pad(mask, (0, blank.shape[1]))))
        return torch.cat([one for one, _ in padded]), torch.cat([mask for _, mask in padded])

    def unconditional(self, batch: int) -> Condition:
        """`Generate an image.` and no picture, also where the condition has one (harmon.md d4, d5)."""
        ids = self.text.unconditional()
        return Condition([ids] * batch, ids)

    @torch.no_grad()
    def answer(
        self, questions: Sequence[str], features: Features | None, max_new_tokens: int = 32
    ) -> list[str]:
        """Greedy answers, one per row, up to the first end."""
        texts = [self.text.question(question, features is not None) for question in questions]
        image = None if features is None else self._understand(features["latents"])
        embeddings, mask = self._embedded(texts, image)
        end = self.config.end
        steps = sampling_rules.greedy(self.network, embeddings, mask, end, max_new_tokens)
        tokens = list(steps)
        rows = torch.stack(tokens, dim=1).tolist() if tokens else [[] for _ in questions]
        warn_truncated(rows, end)
        return [self.text.decoded(row) for row in rows]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.mar.fake_latent.device

    # ---- parameters and weights ----------------------------------------------------------------------
    def trainable_parameters(self) -> list[str]:
        """Everything but the VAE and MAR's unused class embedding, which never has a gradient (harmon.md g8)."""
        return [
            name
            for name, _ in self.named_parameters()
            if name.startswith(_TRAINED) and name != _UNUSED
        ]

    def decay_groups(self) -> DecayGroups:
        """No decay for vectors, biases and the whole diffusion head (harmon.md e)."""
        by_name = dict(self.named_parameters())
        names = self.trainable_parameters()

        def decays(name: str) -> bool:
            return by_name[name].dim() > 1 and not name.endswith(".bias") and "diffloss" not in name

        return DecayGroups(
            decay=tuple(name for name in names if decays(name)),
            no_decay=tuple(name for name in names if not decays(name)),
        )

    def memory_profile(self) -> MemoryProfile:
        """One RecA sequence in the language model: condition, 40 tokens of text, visible latents at the mean mask rate
        (0.867), buffers. The MAR's blocks are counted as language model layers that keep as many values, and the head
        runs on the masked places, `repeats` times. With `frozen_condition` the understanding embeddings are cached too.
        """
        config, mar = self.config, self.config.mar
        seen = config.image_length
        visible = config.tokens * 133 // 1000
        tokens = seen + 40 + visible + mar.buffers
        width = config.llm_value("hidden_size")
        encoder = mar.encoder_depth * mar.encoder_width * (tokens - 40)
        decoder = mar.decoder_depth * mar.decoder_width * seen
        read = seen * width if self.options.frozen_condition else 0
        return MemoryProfile(
            tokens=tokens,
            layers=config.llm_value("num_hidden_layers")
            + round((encoder + decoder) / (tokens * width)),
            width=width,
            inner=config.llm_value("intermediate_size"),
            features=config.tokens * mar.latent_channels + read,
            head_rows=mar.repeats * (config.tokens - visible),
            head_layers=mar.head_depth,
            head_width=mar.head_width,
            head_slice=SLICE,
        )

    def official_state(self) -> dict[str, Tensor]:
        """The Harmon checkpoint under its released names, without the VAE."""
        return weights.official_state(self.network)

    def load(self, path: Path) -> None:
        """Load a model folder, or only the network from an official checkpoint file or folder (a RecA result, say)."""
        path = Path(path)
        if not (path / DESCRIPTION).is_file():
            self._load_network(path)
            return
        self._load_network(path / "model.safetensors")
        vae = path / "vae.safetensors"
        weights.load_vae(self.frozen.vae, weights.read(vae)[0], vae)
        self.set_tokenizer(load_tokenizer(path, self.config.end))

    def _load_network(
        self, path: Path, sha256: str | None = None, allow_unpinned: bool = False
    ) -> bool:
        """Load the network, and the VAE where the file has it (the hub's layout); gives whether it had."""
        network, vae = weights.read(path, sha256, allow_unpinned)
        weights.load_network(self.network, network, path)
        if vae:
            weights.load_vae(self.frozen.vae, vae, path)
        return bool(vae)

    def load_parts(
        self,
        parts: Mapping[str, Path],
        *,
        sha256: Mapping[str, str] | None = None,
        allow_unpinned: bool = False,
    ) -> None:
        """Load official files, each from where it lies: `weights`, `image_tokenizer` (kl16.ckpt) and `tokenizer`.

        `weights` in the hub's layout hold the VAE: then `image_tokenizer` may be left out. A pickle is opened only
        under its `sha256`, unless `allow_unpinned`.
        """
        known = {"weights", "image_tokenizer", "tokenizer"}
        needed = {"weights", "tokenizer"}
        if not needed <= set(parts) <= known:
            wanted = "weights, image_tokenizer and tokenizer"
            raise ValueError(f"Harmon is made of {wanted}; given: {', '.join(parts) or 'nothing'}")
        pins = sha256 or {}
        has_vae = self._load_network(Path(parts["weights"]), pins.get("weights"), allow_unpinned)
        if "image_tokenizer" in parts:
            path = Path(parts["image_tokenizer"])
            tensors, prefixed = weights.read(path, pins.get("image_tokenizer"), allow_unpinned)
            weights.load_vae(self.frozen.vae, prefixed or tensors, path)
        elif not has_vae:
            raise ValueError(
                f"{parts['weights']}: holds no VAE (vae.*); give image_tokenizer, the file kl16.ckpt"
            )
        self.set_tokenizer(load_tokenizer(Path(parts["tokenizer"]), self.config.end))

    def save(self, directory: Path) -> None:
        """Write network and VAE under official names, the tokenizer, and the description last."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights.save_network(self.network, directory / "model.safetensors")
        weights.save_vae(self.frozen.vae, directory / "vae.safetensors")
        self.text.tokenizer.save_pretrained(str(directory))
        network = self.config.to_dict() | {"options": asdict(self.options)}
        described = {"family": self.family, "network": network, "format": FORMAT}
        artifacts.write_json(directory / DESCRIPTION, described)


def _distinct(condition: Condition) -> tuple[list[Sequence[int]], list[int]]:
    """The distinct prompts and, per row, which one it has; with pictures every row is its own."""
    if condition.has_image:
        return list(condition.texts), list(range(len(condition)))
    seen: dict[tuple[int, ...], int] = {}
    index = [seen.setdefault(tuple(text), len(seen)) for text in condition.texts]
    return [list(text) for text in seen], index
